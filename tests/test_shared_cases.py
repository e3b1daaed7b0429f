"""Inputs that people have in public and that once went wrong, one script each, as users run them: where they lie beside the project."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
# test_checkpoint_kinds.py holds what these show, without fine-tuning a whole checkpoint each time
FINE_TUNING = {"24", "25", "27", "28", "29", "30", "40"}
SMALL = [path for path in sorted(CASES.glob("[0-9][0-9]-*.py")) if path.name[:2] not in FINE_TUNING]


@pytest.mark.skipif(not SMALL, reason="the cases do not lie beside this clone")
@pytest.mark.parametrize("script", SMALL, ids=lambda path: path.stem)
def test_case(script):
    settings = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, script], cwd=CASES, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
