"""Sizes that a network cannot take are refused when the recipe is read, not hours later; and no others are."""

import contextlib

import numpy as np
import pytest
import torch

from worldenv_cli.errors import UserError
from worldenv_cli.policies.compact import CompactPolicy
from worldenv_cli.policies.observation import Observation
from worldenv_cli.recipe import load_recipe
from worldenv_cli.reflector.compact import Reflector
from worldenv_cli.simulator.unet import Conditions, VideoUNet


@pytest.mark.parametrize(
    "settings, message",
    [
        (["env.resolution=84"], r"env.resolution is 84, expected a multiple of 16 pixels \(policy 8, simulator 16, reflector 16\); choose 80 or 96$"),
        (["env.resolution=72"], "recipe: env.resolution is 72, expected a multiple of 16 pixels .*; choose 64 or 80$"),
        (["env.resolution=72", "simulator.unet.channels=[32, 64]"], r"16 pixels \(policy 8, simulator 8, reflector 16\); choose 64 or 80$"),
        (["env.resolution=48", "simulator.unet.channels=[8, 8, 8, 8]"], "a multiple of 32 pixels .*; choose 32 or 64$"),
        (["env.resolution=20", "simulator.unet.block=8"], "a multiple of 32 pixels .*; choose 32$"),
        (["env.resolution=100", "policy={model: owner/name}"], r"16 pixels \(policy 1, simulator 16, reflector 16\); choose 96 or 112$"),
        (["policy.channels=[50, 64]"], "policy.channels.0: found 50, expected a multiple of 8$"),
        (["simulator.unet.channels=[32, 60]"], "simulator.unet.channels.1: found 60, expected a multiple of 8$"),
        (["reflector.channels=[64, 64, 4]"], "reflector.channels.2: found 4, expected .*8$"),
        (["policy.width=30"], "policy.width: found 30, expected a multiple of 4$"),
    ],
)
def test_sizes_that_the_networks_cannot_take(settings, message):
    with pytest.raises(UserError, match=message):
        load_recipe("quickstart", settings)


@pytest.mark.parametrize("settings", [["env.resolution=16"], ["env.resolution=48"], ["env.resolution=32", "simulator.unet.block=8"]])
def test_sizes_that_the_networks_take(settings):
    """What the recipe lets through they do compute with; the rule is exactly theirs."""
    recipe = load_recipe("quickstart", settings)
    for size in (recipe.env.resolution, recipe.env.resolution + recipe.reflector.size_step // 2):
        frames = np.zeros((1, 2, size, size, 3), np.uint8)
        reflector = Reflector(recipe.reflector.model_copy(update={"resolution": size}))
        policy = CompactPolicy(recipe.policy.model_copy(update={"resolution": size}))
        unet = VideoUNet(recipe.simulator.unet, 1, 4)
        side = size // recipe.simulator.unet.block
        given = Conditions(torch.zeros(1, side, side, sum(unet.parts)), torch.zeros(1, 2, 4))
        seen = Observation({"front": frames[:, 0]}, np.zeros((1, 4), np.float32), ["push"])
        for step, look in (
            (recipe.reflector.size_step, lambda r=reflector, f=frames: r.score(r.start([f[0]], ["push"]), f)),
            (recipe.policy.size_step, lambda p=policy, s=seen: p.act(s, explore=False)),
            (recipe.simulator.size_step, lambda u=unet, g=given: u.sample(g)),
        ):
            with torch.no_grad(), contextlib.nullcontext() if size % step == 0 else pytest.raises(RuntimeError):
                look()
