"""A policy, or the scripted experts, in the real environment: starts in, episodes and their cost out.

Every real rollout of the toolkit goes through `play`: demonstrations, exploration, probes, acceptance tests and the final evaluation.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .atomic import disk_full_told
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
    keep: Path | None = None,
) -> list[Episode]:
    """One episode for each (task, seed), in order. `policy` None means the scripted experts.

    `noise` gives each episode's Laplace scale (0: the policy's mean); None plays the mean throughout. Episodes of one task are played side by
    side. With a folder `keep` every finished batch is kept there, and a call that was cut off goes on after the last one.
    """
    noise = np.zeros(len(starts)) if noise is None else np.asarray(noise, dtype=np.float64)
    order = sorted(range(len(starts)), key=lambda i: starts[i][0])  # episodes of a task share meshes, and their lengths are alike
    finished: dict[int, Episode] = {}
    with track(description, total=len(starts), unit="episodes") as bar:
        for first in range(0, len(order), env.num_envs):
            batch = order[first : first + env.num_envs]
            path = keep / f"{first:06d}.npz" if keep else None
            played = load_batch(path) if path and path.is_file() else []
            if [(episode.info["task"], episode.info["start"]) for episode in played] != [tuple(starts[i]) for i in batch]:
                generator = torch.Generator().manual_seed(seed * 1_000_003 + first)
                played = _play_batch(env, [starts[i] for i in batch], policy, noise[batch], generator)
                if path:
                    save_batch(path, played)
            finished.update(zip(batch, played))
            bar.advance(len(batch), success=float(np.mean([episode.success[-1] for episode in finished.values()])))
    return [finished[i] for i in range(len(starts))]


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


def save_batch(path: Path, episodes: Sequence[Episode]) -> None:
    """Finished episodes of an unfinished collection, written beside and renamed."""
    arrays = {}
    for number, episode in enumerate(episodes):
        arrays |= {f"{number}.states": episode.states, f"{number}.actions": episode.actions, f"{number}.success": episode.success}
        arrays |= {f"{number}.frames.{camera}": frames for camera, frames in episode.frames.items()}
    facts = [{"instruction": episode.instruction, "info": episode.info, "cameras": list(episode.frames)} for episode in episodes]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with disk_full_told(path), partial.open("wb") as file:
        np.savez(file, facts=np.array(json.dumps(facts)), **arrays)
    partial.replace(path)


def load_batch(path: Path) -> list[Episode]:
    """What `save_batch` wrote; no pickle is opened."""
    with np.load(path, allow_pickle=False) as arrays:
        return [
            Episode(
                frames={camera: arrays[f"{number}.frames.{camera}"] for camera in fact["cameras"]},
                states=arrays[f"{number}.states"],
                actions=arrays[f"{number}.actions"],
                success=arrays[f"{number}.success"],
                instruction=fact["instruction"],
                info=fact["info"],
            )
            for number, fact in enumerate(json.loads(str(arrays["facts"])))
        ]
