"""A recipe for LIBERO from end to end, in miniature: recorded demonstrations, a tiny SmolVLA, LIBERO's own physics and pictures."""

import json
import os

import pytest
from recorded import FIXTURES
from tiny_smolvla import write_smolvla
from typer.testing import CliRunner

from worldenv_cli.cli import app

PYTHON, ASSETS = os.environ.get("WORLDENV_LIBERO_PYTHON"), os.environ.get("WORLDENV_LIBERO_ASSETS")
pytestmark = pytest.mark.skipif(
    not (PYTHON and ASSETS and FIXTURES.exists()), reason="WORLDENV_LIBERO_PYTHON and WORLDENV_LIBERO_ASSETS name no LIBERO"
)
MINIATURE = [
    "env.suite=libero_object",
    "env.tasks=[pick_up_the_alphabet_soup_and_place_it_in_the_basket]",
    "env.resolution=64",
    "env.horizon=16",
    "env.workers=1",
    "env.rows=2",
    "policy.dtype=float32",
    "policy.lora={rank: 4, alpha: 4}",
    "sft={steps: 3, batch: 4}",
    "explore={episodes: 4, held_out: 2, noise: [0.0, 0.3]}",
    "simulator={bank: 60, hidden: 16, unet: {channels: [16, 24], layers: 2}}",
    "simulate={proprioception: {steps: 2, batch: 4}, video: {steps: 2, batch: 2}}",
    "reflector={channels: [16, 16, 16], width: 32, text: {width: 32, layers: 1}}",
    "calibrate.training={steps: 2, batch: 4}",
    "world_env.rows=8",
    "post_train={rounds: 1, probe: 0, resets: 2, validation: 1, lora: {rank: 4, alpha: 4}}",
    "post_train.gate={gap: 1.0, auc: 0.0, success_min: 0.0, success_max: 1.0}",
    "post_train.updates={updates: 1, starts: 2, group: 4, minibatch: 64, microbatch: 16, rescore: true}",
    "post_train.filter={steps: 2, batch: 4}",
    "eval={starts: 1, imagined_starts: 1}",
]


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def test_the_recipe_runs_in_libero(tmp_path):
    run("ingest", FIXTURES / "libero_hdf5", "--out", tmp_path / "soup", "--resize", 64)
    model = write_smolvla(tmp_path / "smolvla", state_size=8, action_size=7, chunk=10)
    places = [f"env.python={PYTHON}", f"env.assets={ASSETS}", f"ingest.source={tmp_path / 'soup'}", f"policy.model={model}"]
    settings = [part for setting in [*MINIATURE, *places] for part in ("--set", setting)]
    run("run", "libero-smolvla", "--out", tmp_path / "run", *settings)
    report = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert [arm["name"] for arm in report["arms"]][:3] == ["SFT", "filtered SFT", "post-trained"]
    assert "LIBERO" in report["protocol"]["environment"]
