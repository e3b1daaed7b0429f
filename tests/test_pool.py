"""Several training seeds as one result (worldenv_cli/evaluation/pool.py)."""

import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from worldenv_cli.cli import app
from worldenv_cli.errors import UserError
from worldenv_cli.evaluation.pool import pool_runs
from worldenv_cli.evaluation.protocol import arm, compare

TASKS = ["open", "close"] * 2


def evaluated(folder, seed, before, after, **changed):
    """A run's folder with an eval.json as the evaluation writes it: two arms, four starts."""
    counts = {"at_horizon": {"successes": 1, "n": 2}}
    arms = [arm("SFT", TASKS, before, 10), arm("post-trained", TASKS, after, 100 + seed, **counts)]
    report = {
        "name": "quick",
        "tasks": TASKS,
        "arms": arms,
        "comparisons": [compare(*arms, TASKS)],
        "imagined_vs_real": [{"checkpoint": "SFT", "task": "open", "imagined": 0.5, "real": 0.5, "n": 2}],
        "protocol": {"starts": 2, "training seed": seed},
        "versions": {"worldenv": "0.1.0"},
        "recipe": yaml.safe_dump({"name": "quick", "seed": seed, "sft": {"steps": 7}} | changed),
    }
    folder.mkdir()
    (folder / "eval.json").write_text(json.dumps(report))
    return folder


def flags(*values):
    return np.array(values, bool)


def test_every_start_counts_once_for_each_run(tmp_path):
    a = evaluated(tmp_path / "a", 0, flags(0, 1, 0, 0), flags(1, 1, 0, 0))
    b = evaluated(tmp_path / "b", 2, flags(1, 0, 0, 0), flags(1, 1, 1, 0))
    report = pool_runs([a, b])
    sft, tuned = report["arms"]
    assert (sft["pooled"]["successes"], sft["pooled"]["n"]) == (2, 8) and tuned["tasks"]["open"] == {"successes": 3, "n": 4}
    assert tuned["real_environment_steps"] == 101 and tuned["at_horizon"] == {"successes": 2, "n": 4}
    (difference,) = report["comparisons"]
    assert difference["difference"]["estimate"] == pytest.approx(3 / 8)
    assert sum(counts["only_b"] for counts in difference["per_task"].values()) == 3  # pairs stay within their run
    assert [row["checkpoint"] for row in report["imagined_vs_real"]] == ["SFT, seed 0", "SFT, seed 2"]
    assert report["protocol"]["training seed"] == "0, 2" and "0, 2" in report["name"]


def test_only_runs_that_differ_in_their_seed_are_pooled(tmp_path):
    a = evaluated(tmp_path / "a", 0, flags(0, 1, 0, 0), flags(1, 1, 0, 0))
    with pytest.raises(UserError, match="comes more than once"):
        pool_runs([a, evaluated(tmp_path / "b", 0, flags(0, 1, 0, 0), flags(1, 1, 0, 0))])
    with pytest.raises(UserError, match="differ in `sft` of their recipes"):
        pool_runs([a, evaluated(tmp_path / "c", 1, flags(0, 1, 0, 0), flags(1, 1, 0, 0), sft={"steps": 8})])
    with pytest.raises(UserError, match="run `worldenv eval --real`"):
        pool_runs([a, tmp_path / "none"])


def edited(**changes):
    return lambda text: json.dumps(json.loads(text) | changes)


DAMAGE = {
    "cut": lambda text: text[:100],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "of something else": lambda text: '{"accuracy": 0.5}',
    "of another version": edited(versions={"worldenv": "9.9.0"}),
    "without arms": edited(arms=[]),
    "arms of another shape": edited(arms={"SFT": 3}),
    "an arm without outcomes": edited(arms=[{"name": "SFT", "real_environment_steps": 3}]),
    "fewer outcomes": edited(tasks=["open"]),
    "words for outcomes": edited(arms=[{"name": "SFT", "outcomes": ["yes"] * 4, "real_environment_steps": 3}]),
    "a comparison of nothing": edited(comparisons=[{"a": "SFT", "b": "gone"}]),
    "no protocol": edited(protocol={}),
    "a recipe that is none": edited(recipe="a: ["),
    "a recipe without a seed": edited(recipe="name: quick"),
    "a seed that is a list": edited(recipe="seed: [1]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("first", [True, False])
def test_a_damaged_or_foreign_evaluation_is_told(tmp_path, damage, first):
    a = evaluated(tmp_path / "a", 0, flags(0, 1, 0, 0), flags(1, 1, 0, 0))
    b = evaluated(tmp_path / "b", 1, flags(0, 1, 0, 0), flags(1, 1, 0, 0))
    (b / "eval.json").write_text(DAMAGE[damage]((b / "eval.json").read_text()))
    result = CliRunner().invoke(app, ["pool", *map(str, (b, a) if first else (a, b)), "--out", str(tmp_path / "pooled")])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and str(b) in result.stderr, result.output
    assert not (tmp_path / "pooled").exists()


def test_an_evaluation_that_is_not_text(tmp_path):
    a = evaluated(tmp_path / "a", 0, flags(0, 1, 0, 0), flags(1, 1, 0, 0))
    (a / "eval.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="truncated or damaged"):
        pool_runs([a])


def test_a_pool_is_made_again_and_what_lies_beside_it_stays(tmp_path):
    runs = [str(evaluated(tmp_path / str(seed), seed, flags(0, 1, 0, 0), flags(1, 1, 0, 1))) for seed in (0, 1)]
    for _ in range(2):
        assert CliRunner().invoke(app, ["pool", *runs, "--out", str(tmp_path / "pooled")]).exit_code == 0
        (tmp_path / "pooled" / "notes.txt").write_text("mine")
    assert (tmp_path / "pooled" / "notes.txt").read_text() == "mine"


def test_the_command_writes_a_report(tmp_path):
    runs = [str(evaluated(tmp_path / str(seed), seed, flags(0, 1, 0, 0), flags(1, 1, 0, 1))) for seed in (0, 1)]
    result = CliRunner().invoke(app, ["pool", *runs, "--out", str(tmp_path / "pooled")])
    assert result.exit_code == 0 and "post-trained 75.0% of 8 real episodes" in result.output
    assert "quick, training seeds 0, 1" in (tmp_path / "pooled" / "report.html").read_text()
    assert json.loads((tmp_path / "pooled" / "eval.json").read_text())["arms"][0]["pooled"]["n"] == 8
