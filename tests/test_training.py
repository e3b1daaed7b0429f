"""The training loop: a cut-off run goes on as if nothing had happened, a loss that is no number stops it, the average is what is left."""

import numpy as np
import pytest
import torch
from torch import nn

from worldenv_cli.artifacts import Checkpoint
from worldenv_cli.errors import UserError
from worldenv_cli.progress import Metrics
from worldenv_cli.training import TrainingConfig, _schedule, one_thread, train

X = torch.from_numpy(np.random.default_rng(1).standard_normal((64, 5)).astype(np.float32))
Y = X.sum(1, keepdim=True).sin()
CONFIG = TrainingConfig(steps=11, batch=8, learning_rate=0.05, checkpoint_every=3, average=0.8)


class CutOff(Exception):
    pass


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 1))


def run(module, checkpoint=None, config=CONFIG, at=None, value=None, seed=3, metrics=None, carried=None):
    """Train; at step `at` the loss is `value`, or the run is cut off. Returns (the steps taken, the weights seen at each)."""
    steps, seen = [], []

    def loss(step, rng):
        steps.append(step)
        seen.append([p.detach().clone() for p in module.parameters()])
        if step == at and value is None:
            raise CutOff
        rows = rng.integers(0, len(X), config.batch)
        error = (module(X[rows]) - Y[rows]).square().mean()
        if carried:
            error = error * carried["memory"].item()  # what an earlier step left behind
            carried["memory"].mul_(0.9).add_(error.detach())
        return error * (value if step == at else 1), {"rows": float(rows[0])}

    train(module, loss, config, seed=seed, description="test", checkpoint=checkpoint, metrics=metrics, carried=carried)
    return steps, seen


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("at, first", [(2, 0), (3, 3), (8, 6), (10, 9)])
def test_resumed_run_is_bit_identical(tmp_path, at, first):
    """Dropout, batches, optimizer, schedule and average: all as in the run that was never cut off."""
    whole, cut, resumed = network(), network(), network()
    run(whole, Checkpoint(tmp_path / "whole"))
    with pytest.raises(CutOff):
        run(cut, Checkpoint(tmp_path / "cut"), at=at)
    with torch.no_grad():
        for parameter in resumed.parameters():  # whatever they were: the checkpoint's count, where there is one
            parameter.mul_(2.0 if first else 1.0)
    steps, _ = run(resumed, Checkpoint(tmp_path / "cut"))
    assert steps == list(range(first, 11))
    assert same(whole, resumed)


def test_what_is_carried_from_step_to_step_is_resumed_too(tmp_path):
    whole, cut, resumed = network(), network(), network()
    memories = [{"memory": torch.ones(1)} for _ in range(3)]
    run(whole, Checkpoint(tmp_path / "whole"), carried=memories[0])
    with pytest.raises(CutOff):
        run(cut, Checkpoint(tmp_path / "cut"), at=8, carried=memories[1])
    run(resumed, Checkpoint(tmp_path / "cut"), carried=memories[2])
    assert same(whole, resumed) and torch.equal(memories[0]["memory"], memories[2]["memory"])


def test_checkpoints_change_nothing(tmp_path):
    plain, kept, other = network(), network(), network()
    run(plain)
    run(kept, Checkpoint(tmp_path))
    run(other, seed=4)
    assert same(plain, kept) and not same(plain, other)
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_000009", "step_000011"]  # the end, too: it is not trained again


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_no_number_stops_and_leaves_the_checkpoint(tmp_path, value):
    checkpoint, module = Checkpoint(tmp_path), network()
    with pytest.raises(UserError, match="step 7"):
        run(module, checkpoint, at=7, value=value)
    step, tensors, _ = checkpoint.latest()
    assert step == 6 and all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert all(torch.isfinite(p).all() for p in module.parameters())
    resumed, whole = network(), network()
    run(resumed, checkpoint)  # mended, it goes on
    run(whole)
    assert same(resumed, whole)


def test_average_is_left():
    """Recomputed from the weights seen before each step; average 0 leaves the last weights themselves."""
    last, averaged = network(), network()
    run(last, config=CONFIG.model_copy(update={"average": 0.0}))
    _, seen = run(averaged)
    seen.append(list(last.parameters()))
    expected = [p.clone() for p in seen[0]]
    for step, weights in enumerate(seen[1:]):
        decay = min(0.8, (step + 1) / (step + 10))
        expected = [decay * e + (1 - decay) * w.detach() for e, w in zip(expected, weights)]
    for found, wanted, raw in zip(averaged.parameters(), expected, last.parameters()):
        torch.testing.assert_close(found.detach(), wanted)
        assert not torch.equal(found, raw)


def test_frozen_parameters_stay():
    module = network()
    module[0].requires_grad_(False)
    run(module)
    assert torch.equal(module[0].weight, network()[0].weight) and not torch.equal(module[3].weight, network()[3].weight)


def test_it_learns_and_logs(tmp_path):
    import json

    module = network()
    run(module, config=CONFIG.model_copy(update={"steps": 101}), metrics=Metrics(tmp_path))
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [0, 20, 40, 60, 80, 100]
    module.eval()
    assert (module(X) - Y).square().mean() < 0.5 * (network().eval()(X) - Y).square().mean()


def test_schedule():
    assert _schedule(0.0, 0.1) < 0.02 and _schedule(0.1, 0.1) == pytest.approx(1) and _schedule(1.0, 0.1) == pytest.approx(0.02)
    assert _schedule(0.55, 0.1) == pytest.approx(0.51) and _schedule(0.0, 0.0) == pytest.approx(1)


def test_one_thread_ends_with_its_block_however_that_ends():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), one_thread():
            assert torch.get_num_threads() == 1
            1 / 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
