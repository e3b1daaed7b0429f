"""Regression against flow matching, for equal times (worldenv_cli/simulator/compare.py)."""

import torch

from worldenv_cli.simulator.compare import compare_objectives
from worldenv_cli.simulator.train import SimulateConfig, own_frames
from worldenv_cli.training import TrainingConfig


def test_both_objectives_are_trained_for_about_the_same_time(simulator, policy, demonstrations):
    config = SimulateConfig(video=TrainingConfig(steps=12, batch=4))
    before = {name: tensor.clone() for name, tensor in simulator.state_dict().items()}
    regression, flow = compare_objectives(simulator, demonstrations, demonstrations[:2], config, policy, 0)
    assert (regression["objective"], flow["objective"]) == ("regression", "flow") and regression["steps"] == 12
    assert 1 <= flow["steps"] <= 12  # making its own context takes several passes
    assert regression["seconds_a_chunk"] < flow["seconds_a_chunk"]
    for one in (regression, flow):
        assert one["seconds"] > 0 and len(one["psnr"]) == len(one["ssim"]) == max(len(e.actions) for e in demonstrations[:2]) // 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in simulator.state_dict().items())  # the lender stays as it was


def test_own_frames_come_after_a_third_of_the_training():
    config = SimulateConfig(video=TrainingConfig(steps=30), own_frames=0.4)
    assert [own_frames(step, config) for step in (0, 10, 11, 29)] == [0.0, 0.0, 0.4, 0.4]
