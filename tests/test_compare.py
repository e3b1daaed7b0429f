"""Regression against flow matching, for equal times (worldenv_cli/simulator/compare.py)."""

import torch

from worldenv_cli.simulator import compare
from worldenv_cli.simulator.train import SimulateConfig
from worldenv_cli.training import TrainingConfig


def test_the_dearer_objective_gets_fewer_steps(simulator, policy, demonstrations, monkeypatch):
    """Where a step of flow matching takes twice as long it gets half as many."""
    measured = compare._seconds_a_step

    def doubled(made, *rest):
        found = measured(made, *rest)
        assert found.keys() == made.keys() == {"regression", "flow"} and min(found.values()) > 0
        return {"regression": 1.0, "flow": 2.0}

    monkeypatch.setattr(compare, "_seconds_a_step", doubled)
    config = SimulateConfig(video=TrainingConfig(steps=12, batch=4))
    before = {name: tensor.clone() for name, tensor in simulator.state_dict().items()}
    regression, flow = compare.compare_objectives(simulator, demonstrations, demonstrations[:2], config, policy, 0)
    assert [(one["objective"], one["steps"]) for one in (regression, flow)] == [("regression", 12), ("flow", 6)]
    for one in (regression, flow):
        assert one["seconds"] > 0 and one["seconds_a_chunk"] > 0
        assert len(one["psnr"]) == len(one["ssim"]) == max(len(e.actions) for e in demonstrations[:2]) // 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in simulator.state_dict().items())  # the lender stays as it was
