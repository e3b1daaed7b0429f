"""Post-training in rounds: its settings, what the models make of a policy, and what must not move."""

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from ..config import Config
from ..data.dataset import Episode
from ..policies.lora import LoraSettings
from ..policies.observation import Observation
from ..policies.sft import SFTConfig
from ..reflector.train import CalibrateConfig
from ..simulator.train import SimulateConfig
from ..training import TrainingConfig
from ..world_env import WorldEnv
from .gate import GateConfig
from .loop import StartPool, UpdatesConfig
from .rollouts import imagine


class PostTrainConfig(Config):
    rounds: int = Field(2, ge=1)
    probe: int = Field(20, ge=0, description="real episodes of each task between two rounds, counted; 0: fully offline, the paper's setting")
    probe_noise: tuple[float, ...] = (0.0, 0.08)
    resets: int = Field(60, ge=0, description="extra first frames of each task: a reset each, no environment step")
    validation: int = Field(25, ge=0, description="real starts of each task, to choose SFT, start or tuned; 0: no test, open tasks are tuned")
    unknown_instruction: Literal["tuned", "sft", "refuse"] = Field(
        "tuned", description="which policy plays an instruction that is near none of env.tasks; tuned: the last one that any task uses"
    )
    lora: LoraSettings = LoraSettings()
    gate: GateConfig = GateConfig()
    updates: UpdatesConfig = UpdatesConfig()
    filter: SFTConfig = SFTConfig(steps=200, learning_rate=5e-4, scale_steps=60)
    refresh_simulator: SimulateConfig = SimulateConfig(
        proprioception=TrainingConfig(steps=100, batch=64, learning_rate=1e-3, weight_decay=0.0),
        video=TrainingConfig(steps=110, batch=24, learning_rate=7e-4, weight_decay=0.01, average=0.99),
    )
    refresh_reflector: CalibrateConfig = CalibrateConfig(training=TrainingConfig(steps=110, batch=32, learning_rate=5e-4, weight_decay=0.05))
    control: bool = Field(True, description="also run the last round with its advantages set to zero")


def imagined_success(policy, env: WorldEnv, pool: StartPool, tasks: Sequence[str], count: int, seed: int) -> dict[str, float]:
    """{task: mean reward} of one imagined episode from each of `count` first frames, drawn by `seed`: what the models make of a policy's mean."""
    torch.manual_seed(seed)  # the simulator's own noise
    found = {}
    for task in tasks:
        rng = np.random.default_rng([seed, zlib.crc32(task.encode())])  # the same frames, whichever tasks are asked for
        rows = rng.choice(len(pool.first[task]), min(count, len(pool.first[task])), replace=False)
        rollouts = imagine(env, policy, [pool.first[task][row] for row in rows], 1, None, explore=False)
        found[task] = float(rollouts.reward.mean())
    return found


def closed_observations(episodes: Sequence[Episode], tasks: Sequence[str], cameras: Sequence[str]) -> Observation | None:
    """Real observations of the tasks that post-training must leave as they are, one in three."""
    mine = [episode for episode in episodes if episode.info["task"] in tasks]
    if not mine:
        return None
    images = {camera: np.concatenate([episode.frames[camera][:-1:3] for episode in mine]) for camera in cameras}
    states = np.concatenate([episode.states[:-1:3] for episode in mine])
    return Observation(images, states, [e.instruction for e in mine for _ in range(len(e.states[:-1:3]))])
