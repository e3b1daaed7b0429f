import ast
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from worldenv_cli import doctor
from worldenv_cli.doctor import Check
from worldenv_cli.envs.rendering import probe


def test_packages_come_from_pyproject():
    wanted = doctor.requirements()
    assert {Requirement(line).name for line in wanted[""]} >= {"torch", "typer", "rich", "transformers", "diffusers", "peft", "datasets"}
    assert {Requirement(line).name for line in wanted["metaworld"]} >= {"mujoco", "metaworld"}


def test_every_imported_package_is_declared():
    """In the core or in an extra; LIBERO has an environment of its own, and lpips and tensorboard are used only where they are."""
    imported = set()
    for path in Path(doctor.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            imported |= {name.partition(".")[0] for name in names}
    called = {"yaml": "pyyaml", "PIL": "pillow", "huggingface_hub": "huggingface-hub", "pydantic_core": "pydantic-core"}
    needed = {called.get(name, name) for name in imported - sys.stdlib_module_names} - {"libero", "robosuite", "lpips", "worldenv_cli"}
    declared = {Requirement(line).name for lines in doctor.requirements().values() for line in lines}
    assert needed <= declared, needed - declared


def test_packages_come_from_the_installed_package_where_there_is_no_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "site" / "worldenv_cli" / "doctor.py"))
    lines = ["torch>=2.6", 'mujoco<4,>=3.2; extra == "metaworld"', "av>=14; extra == 'metaworld'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert doctor.requirements() == {"": ["torch>=2.6"], "metaworld": ["mujoco<4,>=3.2", "av>=14"]}


def test_every_core_package_is_right_here():
    checks = doctor.check_packages()
    assert "torch" in [check.name for check in checks]
    assert [check for check in checks if check.ok is False] == []


@pytest.mark.parametrize(
    "line, extra, expected",
    [
        ("pyyaml>=5", "", (True, "6.0", "")),
        ("no-such-package>=2", "", (False, "not installed", "pip install 'no-such-package>=2'")),
        ("no-such-package>=2", "metaworld", (None, "not installed", "pip install 'worldenv[metaworld]'")),
        ("pyyaml>=99", "", (False, "6.0, expected >=99", "pip install 'pyyaml>=99'")),
        ("pyyaml>=99", "metaworld", (False, "6.0, expected >=99", "pip install 'pyyaml>=99'")),
    ],
)
def test_a_package(monkeypatch, line, extra, expected):
    version = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "6.0" if name == "pyyaml" else version(name))
    assert doctor.check_package(Requirement(line), extra)[1:] == expected


def test_a_local_build_of_torch_is_in_range(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.13.0+cpu")
    assert doctor.check_package(Requirement("torch>=2.6"), "").ok


def test_one_renderer_is_enough(monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.setattr(doctor, "probe", lambda backend: "" if backend == "osmesa" else f"no {backend}")
    checks = {check.name: check for check in doctor.check_renderers()}
    assert checks["renderer osmesa"].ok is True and checks["renderer egl"][1:3] == (None, "no egl") and len(checks) == 3
    monkeypatch.setattr(doctor, "probe", lambda backend: f"no {backend}")
    assert all(check.ok is False and "apt-get install" in check.advice for check in doctor.check_renderers())
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert [check.ok for check in doctor.check_renderers()] == [None]


def test_broken_torch_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [check[:2] for check in doctor.check_devices()] == [("torch", False)]


def test_devices():
    torch = pytest.importorskip("torch")
    checks = doctor.check_devices()
    assert checks[0].name == "CPU" and checks[0].ok and "GFLOPS" in checks[0].found
    assert len(checks) == 1 + max(1, torch.cuda.device_count())
    assert doctor.gflops(torch.device("cpu"), seconds=0.01) > 0.1


def test_disk(monkeypatch):
    usage = types.SimpleNamespace(free=3 * 2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert doctor.check_disk().ok is None and doctor.check_disk().found.startswith("3 GiB free")
    usage.free = 30 * 2**30
    assert doctor.check_disk().ok is True
    assert doctor.check_memory().ok and doctor.check_python() == Check("Python", True, doctor.platform.python_version())


def test_a_renderer_that_fails_is_told_by_its_cause(tmp_path):
    """Not by what the half-made context says when it is destroyed."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\ncat >&2 <<'END'\nTraceback (most recent call last):\nRuntimeError: no display\n"
        "Exception ignored in: <function GLContext.__del__>\nTypeError: 'NoneType' object is not callable\nEND\nexit 1\n"
    )
    python.chmod(0o755)
    assert probe("glfw", str(python)) == "RuntimeError: no display"
