import errno
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from worldenv_cli import __version__, doctor
from worldenv_cli.cli import app
from worldenv_cli.doctor import Check
from worldenv_cli.errors import UserError

STAGES = ["ingest", "sft", "explore", "simulate", "calibrate", "post-train", "eval", "bench"]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(f"name: tiny\nout: {tmp_path}/{{name}}\nenv: {{tasks: {{reach-v3: reach}}}}\n")
    return str(path)


@pytest.fixture
def calls(monkeypatch):
    """A pipeline that only remembers what it was asked to do, or fails with what is put in `error`."""
    calls = types.SimpleNamespace(made=[], error=None)

    def run_stages(recipe, out, stages, *, dry_run, force):
        calls.made.append((recipe, out, stages, dry_run, force))
        if calls.error:
            raise calls.error

    monkeypatch.setitem(sys.modules, "worldenv_cli.pipeline", types.SimpleNamespace(run_stages=run_stages))
    return calls


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments), prog_name="worldenv")


@pytest.mark.parametrize("command, stages", [("run", None)] + [(name, [name]) for name in STAGES])
def test_every_stage(calls, recipe, tmp_path, command, stages):
    assert invoke(command, recipe).exit_code == 0
    arguments = [command, recipe, "-s", "seed=4", "--set", "env.rows=3", "--out", str(tmp_path / "x"), "--dry-run", "--force", "--debug"]
    assert invoke(*arguments).exit_code == 0
    (plain, out, asked, *flags), (changed, other_out, other_asked, *other_flags) = calls.made
    assert plain.seed == 0 and out == tmp_path / "tiny" and asked == stages and flags == [False, False]
    assert changed.seed == 4 and changed.env.rows == 3 and other_out == tmp_path / "x"
    assert other_asked == stages and other_flags == [True, True]


def test_eval_in_the_real_environment(calls, recipe):
    assert invoke("eval", recipe, "--real").exit_code == 0
    assert calls.made[0][2] == ["eval-real"]


@pytest.mark.parametrize(
    "error, code, said",
    [
        (UserError("runs/x/policy does not exist"), 2, "error: runs/x/policy does not exist\n"),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again and it continues from the last checkpoint\n"),
        (ValueError("two\nlines"), 1, "internal error: ValueError: two lines; run again with --debug for the traceback\n"),
        (AssertionError(), 1, "internal error: AssertionError; run again with --debug for the traceback\n"),
        (PermissionError(errno.EACCES, "No entry", "/x"), 2, "error: /x: no permission, or read-only: "),
        (PermissionError(errno.EACCES, "No entry"), 1, "internal error: PermissionError: [Errno 13] No entry"),
        (OSError(errno.ENOSPC, "No space left on device", "/nope/model"), 2, "error: the disk is full: could not write /nope/model ("),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: the disk is full: could not write . ("),
    ],
)
def test_errors_are_one_line(calls, recipe, error, code, said):
    calls.error = error
    result = invoke("sft", recipe)
    assert result.exit_code == code and result.stderr.startswith(said) and result.stderr.count("\n") == 1 and result.stdout == ""
    result = invoke("sft", recipe, "--debug")
    assert result.exit_code == code and "Traceback" in result.stderr and "run_stages" in result.stderr
    assert said.partition("; run again")[0].strip() in result.stderr.splitlines()[-1]


def test_wrong_recipes_are_told_before_anything_runs(calls, recipe):
    for arguments in (["sft", recipe, "--set", "sed=1"], ["sft", "nowhere.yaml"]):
        result = invoke(*arguments)
        assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "did you mean seed?" in invoke("sft", recipe, "--set", "sed=1").stderr and calls.made == []


def test_misspelt_commands_and_flags(calls, recipe):
    result = invoke("post-trian", recipe)
    assert result.exit_code == 2 and "post-train" in result.stderr
    result = invoke("sft", recipe, "--dryrun")
    assert result.exit_code == 2 and "--dry-run" in result.stderr
    assert invoke("sft").exit_code == 2


@pytest.mark.parametrize("checks, code", [([True, None], 0), ([True, False, None], 1)])
def test_doctor(monkeypatch, checks, code):
    monkeypatch.setattr(doctor, "examine", lambda: [Check(f"check{i}", ok, "found [x]", "do") for i, ok in enumerate(checks)])
    result = invoke("doctor")
    assert result.exit_code == code and result.stdout.count("found [x]") == len(checks)


def test_version_and_help():
    assert invoke("--version").stdout == f"worldenv {__version__}\n"
    shown = invoke("--help").stdout
    assert all(f"  {name} " in shown for name in [*STAGES, "run", "doctor"]) and shown.count("...") == 1


def test_the_module_is_a_command_and_imports_nothing_heavy():
    code = """
import sys, runpy
sys.argv = ["worldenv", "--help"]
try:
    runpy.run_module("worldenv_cli", run_name="__main__", alter_sys=True)
except SystemExit as exit:
    assert not exit.code, exit.code
heavy = {"torch", "numpy", "pydantic", "transformers", "mujoco", "yaml", "rich", "gymnasium"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: worldenv ")
