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
from .envs.config import EnvConfig
from .envs.vector import RealVectorEnv
from .policies.observation import Observation
from .progress import track


def play(
    env: RealVectorEnv,
    starts: Sequence[tuple[str, int]],
    policy=None,
    *,
    noise: Sequence[float] | None = None,
    seed: int = 0,
    description: str = "rollouts",
    keep: Path | None = None,
) -> list[Episode]:
    """One episode for each (task, seed), in order. `policy` None means the scripted experts, which only Meta-World has.

    `noise` gives each episode's Laplace scale (0: the policy's mean); None plays the mean throughout. A row whose episode ends goes on with the next
    start, so that no worker waits for the longest episode. With a folder `keep` every finished episode is kept there, and a call that was cut off
    goes on with those that are not.
    """
    noise = np.zeros(len(starts)) if noise is None else np.asarray(noise, dtype=np.float64)
    order = sorted(range(len(starts)), key=lambda i: starts[i][0])  # episodes of a task share meshes
    finished = _kept(keep, starts) if keep else {}
    waiting = [i for i in order if i not in finished]
    playing: dict[int, _Recording] = {}  # by row
    with track(description, total=len(starts), unit="episodes", done=len(finished)) as bar:
        while waiting or playing:
            free = [row for row in range(env.num_envs) if row not in playing]
            begun, waiting = waiting[: len(free)], waiting[len(free) :]
            if begun:
                observation, _ = env.reset(options={"starts": [starts[i] for i in begun], "reset_mask": np.isin(np.arange(env.num_envs), free)})
                for row, i in zip(free, begun):
                    playing[row] = _Recording(i, float(noise[i]), torch.Generator().manual_seed(seed * 1_000_003 + i), observation, row)
            observation, over = _step(env, policy, observation, playing)
            for row in over:
                recording = playing.pop(row)
                episode = recording.episode(env.config, *starts[recording.index], "expert" if policy is None else "policy")
                finished[recording.index] = episode
                if keep:
                    save_episode(keep / f"{recording.index:06d}.npz", episode)
            if over:
                bar.advance(len(over), success=float(np.mean([episode.success[-1] for episode in finished.values()])))
    return [finished[i] for i in range(len(starts))]


class _Recording:
    """An episode while it is played in a row of the environment."""

    def __init__(self, index: int, noise: float, generator: torch.Generator, observation: dict, row: int):
        self.index, self.noise, self.generator = index, noise, generator
        self.frames = {camera: [images[row, None]] for camera, images in observation["images"].items()}
        self.states, self.actions, self.success = [observation["state"][row, None]], [], [np.zeros(1, bool)]

    def add(self, info: dict, chunk: np.ndarray, row: int) -> None:
        for camera, frames in self.frames.items():
            frames.append(info["frames"][camera][row])
        self.states.append(info["states"][row])
        self.actions.append(chunk)
        self.success.append(info["success"][row])

    def episode(self, config: EnvConfig, task: str, start: int, source: str) -> Episode:
        flags, actions = np.concatenate(self.success), np.concatenate(self.actions)
        return Episode(
            frames={camera: np.concatenate(frames) for camera, frames in self.frames.items()},
            states=np.concatenate(self.states),
            actions=actions,
            success=np.logical_or.accumulate(flags),
            instruction=config.tasks[task],
            info={
                "task": task,
                "start": int(start),
                "source": source,
                "noise": self.noise,
                "succeeding": flags.astype(int).tolist(),  # by frame, not cumulative: an achieved task can be undone
                "environment_steps": len(actions) * config.action_repeat,
            },
        )


def _step(env, policy, observation: dict, playing: dict[int, _Recording]) -> tuple[dict, list[int]]:
    """One chunk of every row that is playing: (the observation after it, rows whose episode is over)."""
    rows = np.array(sorted(playing))
    if policy is None:
        observation, _, terminated, truncated, info = env.step_expert()
        chunks = info["actions"]
    else:
        chunks = np.zeros(env.action_space.shape, np.float32)
        chunks[rows] = _choose(policy, Observation.from_vector_env(observation).rows(rows), [playing[row] for row in rows])
        observation, _, terminated, truncated, info = env.step(chunks)
    for row in rows:
        playing[row].add(info, chunks[row], row)
    return observation, [int(row) for row in rows if terminated[row] or truncated[row]]


def _choose(policy, observation: Observation, recordings: list[_Recording]) -> np.ndarray:
    """Chunks (B, T, A) clipped to the action space: the mean for rows of noise 0, a sample for the others, from each episode's own generator."""
    generators = [recording.generator for recording in recordings]  # some policies begin from noise even at their best
    chunk = policy.act(observation, explore=False, generator=generators).chunk
    noisy = np.flatnonzero([recording.noise > 0 for recording in recordings])
    if len(noisy):
        scale = np.array([recordings[i].noise for i in noisy])
        chunk[noisy] = policy.act(observation.rows(noisy), explore=True, scale=scale, generator=[generators[i] for i in noisy]).chunk
    return np.clip(chunk, -1, 1)


def environment_steps(episodes: Sequence[Episode]) -> int:
    return sum(episode.info["environment_steps"] for episode in episodes)


def save_episode(path: Path, episode: Episode) -> None:
    """A finished episode of an unfinished collection, written beside and renamed."""
    arrays = {"states": episode.states, "actions": episode.actions, "success": episode.success}
    arrays |= {f"frames.{camera}": frames for camera, frames in episode.frames.items()}
    facts = {"instruction": episode.instruction, "info": episode.info, "cameras": list(episode.frames)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with disk_full_told(path), partial.open("wb") as file:
        np.savez(file, facts=np.array(json.dumps(facts)), **arrays)
    partial.replace(path)


def load_episode(path: Path) -> Episode:
    """What `save_episode` wrote; no pickle is opened."""
    with np.load(path, allow_pickle=False) as arrays:
        facts = json.loads(str(arrays["facts"]))
        return Episode(
            frames={camera: arrays[f"frames.{camera}"] for camera in facts["cameras"]},
            states=arrays["states"],
            actions=arrays["actions"],
            success=arrays["success"],
            instruction=facts["instruction"],
            info=facts["info"],
        )


def _kept(folder: Path, starts: Sequence[tuple[str, int]]) -> dict[int, Episode]:
    """The finished episodes of a collection that was cut off, by number; those of other starts are left."""
    found = {int(path.stem): load_episode(path) for path in sorted(folder.glob("*.npz"))}
    return {i: e for i, e in found.items() if i < len(starts) and (e.info["task"], e.info["start"]) == tuple(starts[i])}
