"""Post-training in rounds: its settings, what the models make of a policy, and what must not move."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch

from ..data.dataset import Episode
from ..policies.observation import Observation
from ..world_env import WorldEnv
from .loop import StartPool
from .rollouts import imagine


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
