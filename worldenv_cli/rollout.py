"""A policy, or the scripted experts, in the real environment: starts in, episodes and their cost out.

Every real rollout of the toolkit goes through `play`: demonstrations, exploration, probes, acceptance tests and the final evaluation.
"""

from collections.abc import Sequence

import numpy as np
import torch

from .data.dataset import Episode
from .envs.vector import MetaWorldVectorEnv
from .policies.observation import Observation
from .progress import track


def play(
    env: MetaWorldVectorEnv,
    starts: Sequence[tuple[str, int]],
    policy=None,
    *,
    noise: Sequence[float] | None = None,
    seed: int = 0,
    description: str = "rollouts",
) -> list[Episode]:
    """One episode for each (task, seed), in order. `policy` None means the scripted experts.

    `noise` gives each episode's Laplace scale (0: the policy's mean); None plays the mean throughout.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = np.zeros(len(starts)) if noise is None else np.asarray(noise, dtype=np.float64)
    episodes: list[Episode] = []
    # episodes of one task side by side: they share meshes, and their lengths are alike
    order = sorted(range(len(starts)), key=lambda i: starts[i][0])
    finished: dict[int, Episode] = {}
    with track(description, total=len(starts), unit="episodes") as bar:
        for first in range(0, len(order), env.num_envs):
            batch = order[first : first + env.num_envs]
            played = _play_batch(env, [starts[i] for i in batch], policy, noise[batch], generator)
            finished.update(zip(batch, played))
            bar.advance(len(batch), success=float(np.mean([episode.success[-1] for episode in finished.values()])))
    episodes = [finished[i] for i in range(len(starts))]
    return episodes


def _play_batch(env, starts, policy, noise, generator) -> list[Episode]:
    count, camera = len(starts), env.config.camera.name
    observation, info = env.reset(options={"starts": list(starts)})
    frames = [[observation["images"][camera][row, None]] for row in range(count)]
    states = [[observation["state"][row, None]] for row in range(count)]
    actions: list[list] = [[] for _ in range(count)]
    success: list[list] = [[np.zeros(1, bool)] for _ in range(count)]
    alive = info["alive"]
    while alive.any():
        if policy is None:
            observation, _, terminated, truncated, info = env.step_expert()
            chunks = info["actions"]
        else:
            chunks = np.zeros(env.action_space.shape, np.float32)
            chunks[alive] = _choose(policy, Observation.from_vector_env(observation).rows(alive), noise[np.flatnonzero(alive)], generator)
            observation, _, terminated, truncated, info = env.step(chunks)
        for row in np.flatnonzero(info["alive"]):
            frames[row].append(info["frames"][camera][row])
            states[row].append(info["states"][row])
            actions[row].append(chunks[row])
            success[row].append(info["success"][row])
        alive = info["alive"] & ~terminated & ~truncated
    source = "expert" if policy is None else "policy"
    flags = [np.concatenate(success[row]) for row in range(count)]
    return [
        Episode(
            frames={camera: np.concatenate(frames[row])},
            states=np.concatenate(states[row]),
            actions=np.concatenate(actions[row]),
            success=np.logical_or.accumulate(flags[row]),
            instruction=env.config.tasks[task],
            info={
                "task": task,
                "start": int(start),
                "source": source,
                "noise": float(noise[row]),
                "succeeding": flags[row].astype(int).tolist(),  # by frame, not cumulative: an achieved task can be undone
                "environment_steps": sum(map(len, actions[row])) * env.config.action_repeat,
            },
        )
        for row, (task, start) in enumerate(starts)
    ]


def _choose(policy, observation: Observation, noise: np.ndarray, generator) -> np.ndarray:
    """Chunks (B, T, A) clipped to the action space: the mean for rows of noise 0, a sample for the others."""
    chunk = policy.act(observation, explore=False).chunk
    noisy = noise > 0
    if noisy.any():
        chunk[noisy] = policy.act(observation.rows(noisy), explore=True, scale=noise[noisy], generator=generator).chunk
    return np.clip(chunk, -1, 1)


def environment_steps(episodes: Sequence[Episode]) -> int:
    return sum(episode.info["environment_steps"] for episode in episodes)
