"""Freed memory is kept for the next tensor."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from worldenv_cli.memory import keep_freed_memory, peak_memory_gb
import torch
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    for _ in range(20):
        torch.zeros(10_000_000).add_(1)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
assert 0.05 < peak_memory_gb() < 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such setting")
def test_freed_memory_is_not_mapped_anew():
    """20 tensors of 40 MB one after the other: page faults, with and without."""
    given, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout) for how in ("no", "keep")
    )
    assert given > 10_000 and kept < given / 20
