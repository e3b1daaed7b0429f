import errno
import json
import os
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from worldenv_cli import __version__, doctor, progress
from worldenv_cli.cli import app
from worldenv_cli.data.dataset import write_dataset
from worldenv_cli.doctor import Check
from worldenv_cli.errors import UserError
from worldenv_cli.recipe import load_recipe

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

    monkeypatch.setitem(sys.modules, "worldenv_cli.stage_runner", types.SimpleNamespace(run_stages=run_stages))
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
        (KeyboardInterrupt(), 130, "interrupted: run the same command again and it continues from the last checkpoint; with --force anew\n"),
        (ValueError("two\nlines"), 1, "internal error: ValueError: two lines; run again with --debug for the traceback\n"),
        (AssertionError(), 1, "internal error: AssertionError; run again with --debug for the traceback\n"),
        (PermissionError(errno.EACCES, "No entry", "/x"), 2, "error: /x: no permission, or read-only: "),
        (PermissionError(errno.EACCES, "No entry"), 1, "internal error: PermissionError: [Errno 13] No entry"),
        (UserError("two\nlines"), 2, "error: two lines\n"),
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


def test_doctor_for_programs(monkeypatch):
    checks = [Check("torch", True, "2.9"), Check("h5py [hdf5]", None, "not installed", "pip install")]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    assert json.loads(invoke("doctor", "--json").stdout)[1] == {"name": "h5py [hdf5]", "ok": None, "found": "not installed", "advice": "pip install"}
    assert invoke("doctor", "--quiet").stdout == ""
    monkeypatch.setattr(doctor, "examine", lambda: [*checks, Check("renderer egl", False, "no display", "apt-get install libegl1")])
    result = invoke("doctor", "--quiet")
    assert result.exit_code == 1 and "no display" in result.stdout and "torch" not in result.stdout


def test_inspect_for_programs(demonstrations, mini, tmp_path):
    env = mini.env
    names = {"state_names": env.state_names, "action_names": env.action_names}
    write_dataset(tmp_path / "set", demonstrations, fps=env.control_hz, **names, description=env.description(), robot_type=env.robot)
    result = invoke("inspect", str(tmp_path / "set"), "--json")
    assert result.exit_code == 0, result.output
    (facts,) = json.loads(result.stdout)
    assert facts["source"] == str(tmp_path / "set") and len(facts["tasks"]) == 2 and facts["dimensions"][0]["name"].startswith("action")
    assert sum(task["episodes"] for task in facts["tasks"]) == len(demonstrations)
    assert all(task["successes"] == task["known"] == task["episodes"] for task in facts["tasks"])
    assert facts["dimensions"][0]["minimum"] == pytest.approx(min(episode.actions[:, 0].min() for episode in demonstrations), abs=1e-6)


def test_eval_for_programs(monkeypatch, recipe, tmp_path):
    """What is said goes to stderr; stdout is one document, or with --quiet what came out."""
    report = {
        "name": "tiny",
        "arms": [{"name": n, "pooled": {"successes": s, "n": 4}} for n, s in (("SFT", 1), ("post-trained", 3))],
        "comparisons": [],
    }

    def run_stages(recipe, out, stages, *, dry_run, force):
        progress.say("evaluation: playing")
        out.mkdir()
        (out / "eval.json").write_text(json.dumps(report | {"not measured": float("nan")}))

    monkeypatch.setitem(sys.modules, "worldenv_cli.stage_runner", types.SimpleNamespace(run_stages=run_stages))
    result = invoke("eval", recipe, "--real", "--json", "--out", str(tmp_path / "a"))
    assert json.loads(result.stdout) == report | {"not measured": None} and "evaluation: playing" in result.stderr
    result = invoke("eval", recipe, "--real", "--quiet", "--out", str(tmp_path / "b"))
    assert result.stdout == "SFT 25.0% → post-trained 75.0% of 4 real episodes.\n" and result.stderr == ""


def test_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = invoke("recipes").stdout
    assert invoke("recipes", "list").stdout == listed
    assert all(f"{name} " in listed for name in ("quickstart", "metaworld", "libero-pi0"))
    shown = invoke("recipes", "show", "quickstart").stdout
    assert invoke("recipes", "copy", "quickstart").stdout == "quickstart.yaml\n" and (tmp_path / "quickstart.yaml").read_text() == shown
    (tmp_path / "quickstart.yaml").write_text("mine")
    again = invoke("recipes", "copy", "quickstart")
    assert again.exit_code == 2 and "is not overwritten" in again.stderr and (tmp_path / "quickstart.yaml").read_text() == "mine"
    assert invoke("recipes", "copy", "quickstart", "new/folder/my.yaml").exit_code == 0
    assert load_recipe("new/folder/my.yaml").name == "quickstart"
    assert "did you mean quickstart?" in invoke("recipes", "show", "quikstart").stderr
    assert "Clip range" in invoke("recipes", "explain", "post_train.updates.clip").stdout
    wrong = invoke("recipes", "explain", "sft.stepps")
    assert wrong.exit_code == 2 and "did you mean steps?" in wrong.stderr


def test_the_shell_completes_names_of_recipes(tmp_path):
    asked = {"COMP_WORDS": "worldenv run qu", "COMP_CWORD": "2", "_WORLDENV_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", "from worldenv_cli.cli import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | asked)
    assert done.stdout.split() == ["quickstart"], done.stderr
    assert "--install-completion" in invoke("--help").stdout


def test_version_and_help():
    assert invoke("--version").stdout == f"worldenv {__version__}\n"
    shown = invoke("--help").stdout
    assert all(f"  {name} " in shown for name in [*STAGES, "run", "doctor", "recipes"])


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


def test_a_run_is_logged_and_its_refreshed_models_too(finished):
    """Everything that was said, with the time; how far the run is; the losses of models that were trained further."""
    lines = (finished.folder / "run.log").read_text().splitlines()
    said = [line[21:] for line in lines]
    assert "sft: making it" in said and "artifact 2 of 29" in finished.said and all(line[:2] == "20" for line in lines)
    assert any(line.startswith("SFT ") and "→ post-trained" in line for line in said)
    assert len(finished.said.splitlines()) < 150 and "Success by policy" not in finished.said
    for name in ("sft/model", "simulator/video", "rounds/2/simulator/video", "rounds/2/reflector/model"):
        assert (finished.folder / "metrics" / name / "metrics.jsonl").stat().st_size > 0, name
    report = json.loads((finished.folder / "eval.json").read_text())
    assert {curve["name"] for curve in report["curves"]} >= {
        "SFT",
        "simulator, video",
        "reflector",
        "simulator, round 2, video",
        "reflector, round 2",
    }
    assert report["seed"] == "seed 0" and "CPU cores" in report["machine"] and report["code"].startswith("worldenv ")
    assert all((finished.folder / video["path"]).is_file() for video in report["videos"])
    failed = [video for video in report["videos"] if video["failed"]]
    pooled = {arm["name"]: arm["pooled"] for arm in report["arms"]}
    assert bool(failed) == any(pooled[name]["successes"] < pooled[name]["n"] for name in ("SFT", "post-trained"))
