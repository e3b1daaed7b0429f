"""`worldenv doctor`: what this machine has, what is missing, and the command that fixes it."""

import importlib.util
import os
import platform
import re
import shutil
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from .envs.rendering import BACKENDS, HOW_TO_INSTALL, probe

LITTLE_DISK = 10 * 2**30  # bytes: a run with the compact models needs less, one with a 7 B policy more


class Check(NamedTuple):
    name: str
    ok: bool | None  # None: missing or unusual, and nothing needs it here
    found: str
    advice: str = ""


def examine() -> list[Check]:
    """Everything worth knowing, in a few seconds."""
    return [check_python(), *check_packages(), *check_devices(), *check_renderers(), check_memory(), check_disk()]


def print_checks(checks: list[Check]) -> None:
    """As a table, in the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", "found", "what to do", box=None, header_style="bold", pad_edge=False)
    marks = {True: Text("ok", "green"), None: Text("-", "yellow"), False: Text("missing", "red")}
    for check in checks:
        table.add_row(marks[check.ok], Text(check.name), Text(check.found), Text(check.advice))
    if checks:
        Console().print(table)


def check_python() -> Check:
    right = sys.version_info >= (3, 11)
    return Check("Python", right, platform.python_version(), "" if right else "install Python 3.11 or newer")


def check_packages() -> list[Check]:
    """Every package that pyproject.toml asks for, by its version and whether that is in range. The tests' own tools are left out."""
    wanted = [(line, extra) for extra, lines in requirements().items() if extra != "test" for line in lines]
    checked = [(Requirement(line), extra) for line, extra in wanted]
    return [check_package(requirement, extra) for requirement, extra in checked if requirement.name != "worldenv"]  # an extra may include another


def check_package(requirement: Requirement, extra: str) -> Check:
    name = f"{requirement.name} [{extra}]" if extra else requirement.name
    alone = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(name, None if extra else False, "not installed", f"pip install 'worldenv[{extra}]'" if extra else alone)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(name, False, f"{version}, expected {requirement.specifier}", alone)
    return Check(name, True, version)


def requirements() -> dict[str, list[str]]:
    """Extra ("" for the core) -> its requirements, from the checkout, or from the installed package where there is none."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return {"": declared["dependencies"], **declared["optional-dependencies"]}
    found: dict[str, list[str]] = {"": []}
    for line in metadata.requires("worldenv") or []:
        wanted, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"](.+?)['\"]", marker)
        found.setdefault(extra[1] if extra else "", []).append(wanted.strip())
    return found


def check_devices() -> list[Check]:
    """What torch computes on, and how fast."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Check("torch", False, f"cannot be imported: {error}", "install it again, see https://pytorch.org/get-started")]
    speed = gflops(torch.device("cpu"))
    checks = [Check("CPU", True, f"{torch.get_num_threads()} of {os.cpu_count()} cores in use, {speed:.0f} GFLOPS (float32)")]
    if not torch.cuda.is_available():
        return [*checks, Check("CUDA", None, "no device", "the compact models do without; larger ones need a GPU")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        speed = gflops(torch.device("cuda", index))
        found = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {speed:.0f} GFLOPS (float32)"
        checks.append(Check(f"cuda:{index}", True, found))
    return checks


def gflops(device, seconds: float = 0.3) -> float:
    """Best rate of a float32 matrix product within `seconds`, after one to warm up."""
    import torch

    size = 1024 if device.type == "cpu" else 4096
    matrix = torch.randn(size, size, device=device)
    best, until = 0.0, None
    while until is None or time.perf_counter() < until:
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        took = time.perf_counter() - started
        if until is None:
            until = time.perf_counter() + seconds
        best = max(best, 2 * size**3 / took / 1e9)
    return best


def check_renderers() -> list[Check]:
    """Each headless renderer tried out. One is enough; none is an error where MuJoCo is installed."""
    if not importlib.util.find_spec("mujoco"):
        return [Check("renderer", None, "MuJoCo is not installed", "pip install 'worldenv[metaworld]'")]
    with ThreadPoolExecutor() as pool:
        failures = dict(zip(BACKENDS, pool.map(probe, BACKENDS), strict=True))
    working = [Check(f"renderer {backend}", True, "renders") for backend, failure in failures.items() if not failure]
    broken = [(f"renderer {backend}", failure) for backend, failure in failures.items() if failure]
    if working:
        return working + [Check(name, None, failure, "not needed: one is enough") for name, failure in broken]
    return [Check(name, False, failure, HOW_TO_INSTALL) for name, failure in broken]


def check_memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    return Check("memory", True, f"{memory.available / 2**30:.0f} of {memory.total / 2**30:.0f} GiB available")


def check_disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / 2**30:.0f} GiB free in {Path.cwd()}"
    return Check("disk", True, found) if free >= LITTLE_DISK else Check("disk", None, found, "free some space before a long run")
