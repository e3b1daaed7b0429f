"""What tests/test_distributed.py lets two processes do at the same time; each writes what it ended with."""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from toy_world import TASKS, adapted, climbing_world, config, untrained_world, update

from worldenv_cli import distributed
from worldenv_cli.policies.compact import CompactPolicy
from worldenv_cli.recipe import load_recipe
from worldenv_cli.training import TrainingConfig, train

STEPS = TrainingConfig(steps=5, batch=4, learning_rate=0.01, average=0.0)


def problem():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def loss_of(model, rng):
    x = torch.from_numpy(rng.standard_normal((4, 3)).astype(np.float32))
    return ((model(x) - x[:, :2] * 2) ** 2).mean()


def main(folder: Path) -> None:
    distributed.begin()
    model = problem()
    train(model, lambda _, rng: (loss_of(model, rng), {}), STEPS, seed=3, description="together")
    recipe = load_recipe(Path(__file__).with_name("mini.yaml"))
    torch.manual_seed(0)
    policy = CompactPolicy(recipe.policy).eval()
    world = climbing_world(untrained_world(recipe, simulator_config(recipe), policy), rows=16)
    tuned = adapted(policy)
    step = config(updates=10, starts=4, group=16, backbone_rate=3e-3, head_rate=3e-3, minibatch=64)
    history = update(world, tuned, step, tasks=tuple(TASKS))["history"]
    rewards = torch.tensor([figures["reward"] for figures in history])
    tensors = {f"trained.{name}": tensor for name, tensor in model.state_dict().items()} | {"rewards": rewards}
    tensors |= {f"tuned.{name}": tensor.clone() for name, tensor in tuned.state_dict().items()}
    save_file(tensors, folder / f"{distributed.rank()}.safetensors")


def simulator_config(recipe):
    camera = recipe.env.camera
    found = {"intrinsics": camera.intrinsics(recipe.env.resolution).tolist(), "extrinsics": camera.extrinsics().tolist()}
    return type(recipe.simulator).model_validate(recipe.simulator.model_dump() | found | {"action_unit": (0.04 * np.diag([1.0, 1, 1, 0])).tolist()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
