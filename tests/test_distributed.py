"""Two processes as one run: they learn the same from different samples, and what they leave is what one process goes on with."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from together import STEPS, loss_of, problem

from worldenv_cli.recipe import load_recipe
from worldenv_cli.stage_runner import run_stages
from worldenv_cli.training import train

HERE = Path(__file__).parent


def torchrun(*arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    code, output = torchrun(HERE / "together.py", folder)
    assert code == 0, output
    return [load_file(folder / f"{rank}.safetensors") for rank in (0, 1)]


def test_processes_end_with_the_same_weights(ended):
    for name in ended[0].keys() - {"rewards"}:
        assert torch.equal(ended[0][name], ended[1][name]), name
    assert not torch.equal(ended[0]["rewards"], ended[1]["rewards"])  # each imagined groups of its own


def test_two_processes_train_on_both_their_samples(ended):
    """As one process would with the mean of both losses."""
    model = problem()

    def both(step, rng):
        other = np.random.default_rng([3, step, 1])
        other.integers(2**62)  # as training itself draws before the loss
        return (loss_of(model, rng) + loss_of(model, other)) / 2, {}

    train(model, both, STEPS, seed=3, description="alone")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(ended[0][f"trained.{name}"], tensor, rtol=0, atol=1e-6)


def test_the_reward_rises_in_both(ended):
    for one in ended:
        assert one["rewards"][-2:].mean() > one["rewards"][0] + 0.1, one["rewards"]


def test_a_run_of_two_processes_is_a_run(tmp_path, capsys):
    """From end to end; afterwards one process finds everything up to date."""
    code, output = torchrun("-m", "worldenv_cli", "run", HERE / "mini.yaml", "--out", tmp_path / "run", "--set", "post_train.rounds=1")
    assert code == 0, output
    assert output.splitlines().count("sft: making it") == 1 and (tmp_path / "run" / "report.html").is_file()
    run_stages(load_recipe(HERE / "mini.yaml", ["post_train.rounds=1"]), tmp_path / "run")
    assert "making it" not in capsys.readouterr().out
    assert not list((tmp_path / "run").rglob(".unfinished/*/*"))


def test_groups_are_not_split(tmp_path):
    code, output = torchrun(HERE / "together.py", tmp_path, processes=3)
    assert code != 0 and "post_train.updates.starts is 4, expected a multiple of the 3 processes" in output
