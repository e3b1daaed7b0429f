"""The whole loop in miniature: real Meta-World, real training steps, every artifact; what is up to date stays, what was cut off goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import COFFEE, DRAWER, MINI
from test_artifacts import flip
from test_destination import state
from typer.testing import CliRunner

from worldenv_cli.artifacts import load_config, load_tensors
from worldenv_cli.bench import REPEATS
from worldenv_cli.cli import app
from worldenv_cli.data.dataset import read_dataset, read_description
from worldenv_cli.errors import UserError
from worldenv_cli.models import load_model
from worldenv_cli.policies.chosen import ChosenPolicy
from worldenv_cli.policies.lora import AdaptedPolicy
from worldenv_cli.recipe import load_recipe
from worldenv_cli.stage_runner import open_run, run_stages

ACCEPTANCE = ["acceptance/sft", "acceptance/start", "acceptance/tuned", "acceptance/control"]
DATASETS = ["demonstrations", "exploration", "rounds/1/probe", *ACCEPTANCE]
GATES = ["rounds/1/gate", "rounds/2/gate"]
POLICIES = ["sft", "rounds/1/start", "rounds/1/tuned", "rounds/2/start", "rounds/2/tuned", "rounds/2/control", "cloned"]
CHOSEN = ["post-trained", "control", "rival"]
MODELS = {"simulator": "simulator", "rounds/2/simulator": "simulator", "reflector": "reflector", "rounds/2/reflector": "reflector"}
EVALUATIONS = ["eval/imagined", "eval/sft", "eval/post-trained", "eval/rival", "eval/control", "eval/rounds-1-tuned"]
ARTIFACTS = DATASETS + GATES + POLICIES + CHOSEN + [*MODELS] + EVALUATIONS


@pytest.fixture(scope="module")
def report(finished):
    return json.loads((finished.folder / "eval.json").read_text())


def provenance(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("provenance.json")}


# What a run leaves


def test_every_artifact_is_there_and_nothing_else(finished):
    assert sorted(provenance(finished.folder)) == sorted(f"{name}/provenance.json" for name in ARTIFACTS)
    left = [path for path in finished.folder.rglob("*") if path.is_file() and (".unfinished" in path.parts or "partial" in path.name)]
    assert left == []


@pytest.mark.parametrize("name", DATASETS)
def test_datasets_load(finished, mini, name):
    episodes, described = read_dataset(finished.folder / name), read_description(finished.folder / name)
    counts = {"demonstrations": 2, "exploration": 9, "rounds/1/probe": 4}
    assert [sum(e.info["task"] == task for e in episodes) for task in (COFFEE, DRAWER)] == [counts.get(name, 1)] * 2
    assert described["environment_steps"] >= sum(len(e.actions) for e in episodes) * 4
    assert all(len(e.actions) <= 24 and e.frames["front"].shape[1:] == (32, 32, 3) for e in episodes)


def test_starts_are_never_used_twice(finished):
    """Except where two policies are compared from the same ones."""
    used = {name: {(e.info["task"], e.info["start"]) for e in read_dataset(finished.folder / name)} for name in DATASETS}
    assert used["acceptance/sft"] == used["acceptance/start"] == used["acceptance/tuned"] == used["acceptance/control"]
    different = [starts for name, starts in used.items() if name not in ACCEPTANCE[1:]]
    assert sum(map(len, different)) == len(set().union(*different)) and len(used["acceptance/start"]) == 2


@pytest.mark.parametrize("name", POLICIES + CHOSEN)
def test_policies_load(finished, name):
    policy = load_model(finished.folder / name, "policy")
    tensors = load_tensors(finished.folder / name)
    assert not policy.training and all(np.isfinite(tensor.numpy()).all() for tensor in tensors.values())
    assert isinstance(policy, AdaptedPolicy) == (name in ("rounds/1/tuned", "rounds/2/tuned", "rounds/2/control"))
    assert isinstance(policy, ChosenPolicy) == (name in CHOSEN)
    card = (finished.folder / name / "README.md").read_text()
    assert card.startswith("---\n") and "policy" in card


@pytest.mark.parametrize("name", MODELS)
def test_models_load(finished, name):
    model = load_model(finished.folder / name, MODELS[name])
    assert not model.training
    with pytest.raises(UserError, match="expected 'policy'"):
        load_model(finished.folder / name, "policy")
    measured = json.loads((finished.folder / name / ("fidelity.json" if MODELS[name] == "simulator" else "errors.json")).read_text())
    assert measured


def test_real_episodes_choose_the_policy_of_each_task(finished, mini):
    """Of the members only those are kept that a task uses."""
    members = {"post-trained": ["sft", "start", "tuned"], "control": ["sft", "start", "control"], "rival": ["sft", "cloned"]}
    artifacts = {"start": "rounds/2/start", "tuned": "rounds/2/tuned", "control": "rounds/2/control"}
    for name, wanted in members.items():
        found = json.loads((finished.folder / name / "acceptance.json").read_text())
        policy = load_model(finished.folder / name, "policy")
        kept = [member for member in wanted if member in found["choice"].values()]
        assert list(policy.members) == kept and policy.default == kept[-1]
        assert policy.choice == {mini.env.tasks[task]: member for task, member in found["choice"].items()}
        for task, chosen in found["choice"].items():
            counts = {candidate: tasks[task]["successes"] for candidate, tasks in found["counts"].items()}
            candidate = "start" if chosen == "cloned" else chosen
            assert list(counts) == (["sft", "start"] if name == "rival" else wanted) and counts[candidate] == max(counts.values())
        tensors = load_tensors(finished.folder / name)
        for member in kept:
            for key, tensor in load_tensors(finished.folder / artifacts.get(member, member)).items():
                assert (tensors[f"members.{member}.{key}"] == tensor).all()


def test_rounds_say_what_they_did(finished):
    for name in ("rounds/1/tuned", "rounds/2/tuned", "rounds/2/control"):
        result = json.loads((finished.folder / name / "round.json").read_text())
        assert result["updates"] == len(result["history"]) > 0 and result["history"][-1]["control_steps"] > 0
        still = [update["advantage_spread"] == 0 for update in result["history"]]
        assert all(still) if name.endswith("control") else not any(still)
    for name in GATES:
        found = load_config(finished.folder / name, "gate")
        assert [row["task"] for row in found["table"]] == [COFFEE, DRAWER] and set(found["baseline"]) == set(found["open_tasks"])
    logged = (finished.folder / "metrics" / "rounds/1/tuned/model/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [0, 1]


def test_report_has_every_arm(finished, report):
    arms = {row["name"]: row for row in report["arms"]}
    assert list(arms) == ["SFT", "filtered SFT", "post-trained", "control (zero advantages)", "post-trained offline, 1 round"]
    for row in arms.values():
        assert len(row["outcomes"]) == row["pooled"]["n"] == 2 and sum(row["outcomes"]) == row["pooled"]["successes"]
        assert set(row["tasks"]) == {COFFEE, DRAWER} and row["real_environment_steps"] > 0
    cost = report["cost_by_dataset"]
    assert sorted(cost) == sorted(DATASETS) and all(steps > 0 for steps in cost.values())
    assert arms["SFT"]["real_environment_steps"] == cost["demonstrations"]
    assert arms["post-trained"]["real_environment_steps"] == arms["filtered SFT"]["real_environment_steps"]
    assert arms["post-trained"]["real_environment_steps"] == sum(cost.values()) - cost["acceptance/control"]
    offline = arms["post-trained offline, 1 round"]["real_environment_steps"]
    assert offline == cost["demonstrations"] + cost["exploration"]  # no probe, no acceptance test
    assert arms["control (zero advantages)"]["real_environment_steps"] == sum(cost.values()) - cost["acceptance/tuned"]
    assert [(c["a"], c["b"]) for c in report["comparisons"]][:2] == [("SFT", "post-trained"), ("filtered SFT", "post-trained")]
    assert {row["checkpoint"] for row in report["imagined_vs_real"]} == set(arms)
    assert report["wall_seconds"].keys() >= {"demonstrations", "sft", "exploration", "simulator", "reflector", "rounds/2/tuned", "eval/sft"}


def test_a_run_has_a_card_with_what_was_measured(finished, report):
    card = (finished.folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: worldenv\npipeline_tag: robotics\n")
    for row in report["arms"]:
        assert f"| {row['name']} |" in card and f"{row['pooled']['successes']} of {row['pooled']['n']} [" in card
    assert all(f"| {found['b']} − {found['a']} |" in card for found in report["comparisons"]) and str(finished.folder) not in card


def test_report_and_videos_are_there(finished, report):
    import av

    page = (finished.folder / "report.html").read_text()
    assert "post-trained" in page and COFFEE in page and len(page) > 5000
    assert len([video for video in report["videos"] if not video["failed"]]) == 4
    for video in report["videos"]:
        assert video["path"] in page
        with av.open(str(finished.folder / video["path"])) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) > 10 and np.std(frames[0]) > 5
    assert (finished.folder / "eval/sft/stills.png").stat().st_size > 1000


# What is made again


def test_a_second_run_makes_nothing(finished, mini, capsys):
    before, began = provenance(finished.folder), time.monotonic()
    run_stages(mini, finished.folder)
    assert provenance(finished.folder) == before and time.monotonic() - began < 20
    said = capsys.readouterr().out
    assert "making it" not in said and said.count(": up to date") == len(ARTIFACTS)


def planned(finished, capsys, *changes):
    """{artifact: would it be made?} and all that was said, with these changes of the recipe."""
    before = provenance(finished.folder)
    run_stages(load_recipe(MINI, changes), finished.folder, dry_run=True)
    assert provenance(finished.folder) == before
    said = capsys.readouterr().out
    lines = [line.split(": ") for line in said.splitlines() if line.endswith((": would be made", ": up to date"))]
    return {name: what == "would be made" for name, what in lines}, said


def test_dry_run_plans_nothing_for_a_finished_run(finished, capsys):
    plan, said = planned(finished, capsys)
    assert sorted(plan) == sorted(ARTIFACTS) and not any(plan.values())
    assert "demonstrations: 4 real episodes, at most 384 environment steps" in said and "parameters" in said


def test_a_change_reaches_what_depends_on_it_and_nothing_else(finished, capsys):
    plan, _ = planned(finished, capsys, "post_train.updates.clip=0.1")
    kept = {"demonstrations", "sft", "exploration", "simulator", "reflector", "rounds/1/start", "rounds/1/gate", "acceptance/sft"}
    assert {name for name, stale in plan.items() if not stale} == kept


@pytest.mark.parametrize(
    "change, stale",
    [
        ("eval.starts=2", set(EVALUATIONS)),
        ("post_train.control=false", {"eval/imagined"}),  # an arm fewer
        ("env.workers=2", set()),
        ("seed=1", set(ARTIFACTS)),
    ],
)
def test_changes(finished, capsys, change, stale):
    plan, _ = planned(finished, capsys, change)
    assert {name for name, would in plan.items() if would} == stale


OTHER_RECIPES = [
    "seed=1",
    "name=other",
    "env.horizon=120",
    "ingest.demos_per_task=5",
    "policy.width=64",
    "sft.steps=31",
    "explore.episodes=6",
    "simulator.hidden=64",
    "simulate.video.steps=7",
    "reflector.width=64",
    "calibrate.training.steps=7",
    "calibrate.calibration_share=0.4",
    "world_env.terminate=false",
    "post_train.rounds=1",
    "post_train.probe=8",
    "post_train.resets=3",
    "post_train.validation=2",
    "post_train.control=false",
    "post_train.gate.gap=0.9",
    "post_train.lora.rank=2",
    "post_train.updates.clip=0.1",
    "post_train.filter.steps=4",
    "post_train.refresh_simulator.video.steps=3",
    "post_train.refresh_reflector.training.steps=3",
    "eval.offset=1",
    "eval.imagined_starts=1",
    "eval.offline=false",
]


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory):
    """The finished run, for tests that must not change it."""
    return Path(shutil.copytree(finished.folder, tmp_path_factory.mktemp("copied") / "run"))


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("stage", [("eval", "--real"), ("eval",), ("post-train",)])
@pytest.mark.parametrize("change", OTHER_RECIPES)
def test_no_report_names_a_recipe_that_did_not_make_it(copied, change, stage):
    """Whichever setting differs, and however far back it was used; nor is anything touched."""
    before = state(copied)
    result = command(*stage, MINI, "--set", change, "--out", copied)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "recipe" in result.stderr, (result.output, result.stderr)
    assert state(copied) == before


def test_settings_that_change_no_result_are_not_another_recipe(copied):
    recipe = (copied / "recipe.yaml").read_text()
    result = command("eval", "--real", MINI, "--set", "env.workers=2", "--out", copied)
    assert result.exit_code == 0, result.stderr
    assert (copied / "recipe.yaml").read_text() == recipe


DAMAGED = ["sft/model.safetensors", "rounds/1/tuned/model.safetensors", "eval/sft/outcomes.json", "rounds/2/gate/config.json"]


@pytest.mark.parametrize("name", [*DAMAGED, "post-trained/acceptance.json", "demonstrations/meta/stats.json"])
def test_a_flipped_bit_is_told_by_what_uses_it(copied, name):
    whole = (copied / name).read_bytes()
    flip(copied / name)
    before = state(copied)
    for arguments in (("eval", "--real", MINI), ("run", MINI)):
        result = command(*arguments, "--out", copied)
        assert result.exit_code == 2 and f"{name} does not match its provenance" in result.stderr and "--force`" in result.stderr, result.output
        assert state(copied) == before
    (copied / name).write_bytes(whole)


def test_arms_that_the_recipe_leaves_out(finished, tmp_path):
    """In a folder that holds them: refused; forced, they are set aside, and what is left is reported."""
    run, changes = Path(shutil.copytree(finished.folder, tmp_path / "run")), ("--set", "post_train.control=false", "--set", "eval.offline=false")
    result = command("eval", "--real", MINI, *changes, "--out", run)
    assert result.exit_code == 2 and "this recipe makes no such artifact" in result.stderr
    result = command("eval", "--real", MINI, *changes, "--out", run, "--force")
    assert result.exit_code == 0, (result.output, result.exception)
    shown = json.loads((run / "eval.json").read_text())
    assert [row["name"] for row in shown["arms"]] == ["SFT", "filtered SFT", "post-trained"] and shown["imagined_vs_real"] == []
    assert not (run / "control").exists() and list(run.glob(".replaced/*/control/model.safetensors"))
    result = command("eval", "--real", MINI, "--out", run)
    assert result.exit_code == 2 and "control does not exist" in result.stderr and "`worldenv post-train`" in result.stderr


def test_a_run_leaves_no_threads_of_tensorboard(finished, mini, tmp_path):
    pytest.importorskip("tensorboard")
    shutil.copytree(finished.folder / "demonstrations", tmp_path / "demonstrations")
    run_stages(mini, tmp_path, ["sft"])
    assert list((tmp_path / "metrics" / "sft" / "model").glob("events.out.tfevents.*"))
    assert [thread for thread in threading.enumerate() if type(thread).__module__.startswith("tensorboard")] == []


def test_stages_one_by_one_make_what_the_run_made(finished, mini, tmp_path, capsys):
    """From the same demonstrations, the same policy, bit for bit; and its own settings make another."""
    shutil.copytree(finished.folder / "demonstrations", tmp_path / "demonstrations")
    run_stages(mini, tmp_path, ["sft"])
    one, other = load_tensors(finished.folder / "sft"), load_tensors(tmp_path / "sft")
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    with pytest.raises(UserError, match="sft was made with another recipe: sft.steps was 30, here it is 3; .*--force"):
        run_stages(load_recipe(MINI, ["sft.steps=3"]), tmp_path, ["sft"])
    run_stages(load_recipe(MINI, ["sft.steps=3"]), tmp_path, ["sft"], force=True)
    assert any((load_tensors(tmp_path / "sft")[name] != one[name]).any() for name in one)
    before = (tmp_path / "sft" / "provenance.json").stat().st_mtime_ns
    run_stages(load_recipe(MINI, ["sft.steps=3"]), tmp_path, ["sft"], force=True)
    assert (tmp_path / "sft" / "provenance.json").stat().st_mtime_ns != before


def test_a_dataset_is_read_once_and_again_when_it_was_made_again(finished, mini, tmp_path):
    shutil.copytree(finished.folder / "demonstrations", tmp_path / "demonstrations")
    run = open_run(mini, tmp_path)
    before = run.episodes("demonstrations")
    assert run.episodes("demonstrations") is before
    run.artifact("demonstrations", {}, {}, lambda folder, _: shutil.copytree(finished.folder / "exploration", folder, dirs_exist_ok=True))
    assert len(run.episodes("demonstrations")) == len(read_dataset(finished.folder / "exploration")) != len(before)


def test_objectives_are_compared_for_the_report(finished, mini, tmp_path):
    """Only when asked for: the loop does without."""
    assert not (finished.folder / "comparison").exists()
    shutil.copytree(finished.folder, tmp_path / "run")
    run_stages(mini, tmp_path / "run", ["compare", "eval-real"])
    found = json.loads((tmp_path / "run" / "eval.json").read_text())["compared"]
    assert [one["objective"] for one in found["compared"]] == ["regression", "flow"] and found["n_episodes"] == 8
    assert "Objectives compared" in (tmp_path / "run" / "report.html").read_text()


def test_bench_measures_both_environments_in_turn(finished, mini, capsys):
    run_stages(mini, finished.folder, ["bench"])
    found = json.loads((finished.folder / "bench.json").read_text())
    assert len(found["measured"]["real"]) == len(found["measured"]["imagined"]) == REPEATS
    assert found["real_steps_per_second"] == np.median(found["measured"]["real"]) > 0
    assert found["ratio"] == pytest.approx(np.median(found["measured"]["imagined"]) / np.median(found["measured"]["real"]))
    assert 0 < found["share_of_peak"] < 1 and f"medians of {REPEATS}" in capsys.readouterr().out
    (finished.folder / "bench.json").unlink()


@pytest.mark.parametrize("change, told", [("ingest.demos_per_task=3", "ingest.demos_per_task was 2"), ("seed=5", "seed was 0, here it is 5")])
def test_an_input_of_another_recipe_is_not_used(finished, tmp_path, change, told):
    shutil.copytree(finished.folder / "demonstrations", tmp_path / "demonstrations")
    with pytest.raises(UserError, match=f"made with another recipe: {told}.*`worldenv ingest`"):
        run_stages(load_recipe(MINI, [change]), tmp_path, ["sft"])
    assert not (tmp_path / "sft").exists()


@pytest.mark.parametrize(
    "stage, missing, command", [("sft", "demonstrations", "ingest"), ("simulate", "demonstrations", "ingest"), ("eval-real", "sft", "sft")]
)
def test_missing_input_names_the_command(mini, tmp_path, stage, missing, command):
    with pytest.raises(UserError, match=f"{missing} does not exist.*`worldenv {command}`"):
        run_stages(mini, tmp_path, [stage])


def test_command_line_tells_a_missing_input_in_one_line(tmp_path):
    result = CliRunner().invoke(app, ["sft", str(MINI), "--out", str(tmp_path)])
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("error: ") and "`worldenv ingest`" in result.stderr


def test_a_failed_stage_leaves_no_artifact(finished, mini, tmp_path, monkeypatch):
    from worldenv_cli.policies import sft

    def fail(*_, **__):
        raise RuntimeError("out of luck")

    shutil.copytree(finished.folder / "demonstrations", tmp_path / "demonstrations")
    monkeypatch.setattr(sft, "fine_tune", fail)
    with pytest.raises(RuntimeError):
        run_stages(mini, tmp_path, ["sft"])
    assert not (tmp_path / "sft").exists()
    monkeypatch.undo()
    run_stages(mini, tmp_path, ["sft"])
    assert load_model(tmp_path / "sft", "policy")


def test_killed_run_goes_on(finished, tmp_path):
    """kill -9 after the first checkpoint: the rerun says that it continues, finishes, and has the weights of a run that was left alone."""
    changes = ["sft.steps=100", "sft.checkpoint_every=10"]
    root = Path(__file__).parent.parent
    for name in ("killed", "whole"):
        shutil.copytree(finished.folder / "demonstrations", tmp_path / name / "demonstrations")

    def command(name):
        return [sys.executable, "-m", "worldenv_cli", "sft", str(MINI), *(f"--set={change}" for change in changes), "--out", str(tmp_path / name)]

    process = subprocess.Popen(command("killed"), cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder, deadline = tmp_path / "killed" / ".unfinished" / "sft" / "model", time.monotonic() + 60
    try:
        while not list(folder.glob("step_??????")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "sft").exists()
    again = subprocess.run(command("killed"), cwd=root, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "sft: continuing model at step" in again.stdout and "fine-tuning: 100/100 steps" in again.stdout
    run_stages(load_recipe(MINI, changes), tmp_path / "whole", ["sft"])
    resumed, whole = load_tensors(tmp_path / "killed" / "sft"), load_tensors(tmp_path / "whole" / "sft")
    assert all((resumed[name] == whole[name]).all() for name in whole)
    assert not list((tmp_path / "killed").glob(".unfinished/sft"))
    logged = [json.loads(line)["step"] for line in (tmp_path / "killed/metrics/sft/model/metrics.jsonl").read_text().splitlines()]
    assert logged == sorted(set(logged)) and logged[0] == 0
