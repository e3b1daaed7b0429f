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
from .policies.checks import check_actions
from .policies.observation import Observation
from .progress import say, track


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
    start, so that no worker waits for the longest episode.

    With a folder `keep` every finished episode is kept there, and a call that was cut off ends as if it had not been, to the bit. Which rows a batch
    has shows in the last bits of what a policy answers, so rows come and go as they did: an episode that is kept takes its row for as long as it
    lasted, is read instead of played, and is shown to the policy beside those that are played. Where a whole batch is kept nothing is computed.

    Raises UserError for an action that is not finite.
    """
    noise = np.zeros(len(starts)) if noise is None else np.asarray(noise, dtype=np.float64)
    waiting = sorted(range(len(starts)), key=lambda i: starts[i][0])  # episodes of a task share meshes
    finished = _kept(keep, starts) if keep else {}
    playing: dict[int, _Recording | _Kept] = {}  # by row
    observation, _ = env.reset(options={"starts": []})
    with track(description, total=len(starts), unit="episodes", done=len(finished)) as bar:
        while waiting or playing:
            free = [row for row in range(env.num_envs) if row not in playing]
            begun, waiting = dict(zip(free, waiting)), waiting[len(free) :]
            new = [row for row, i in begun.items() if i not in finished]
            if new:
                options = {"starts": [starts[begun[row]] for row in new], "reset_mask": np.isin(np.arange(env.num_envs), new)}
                observation, _ = env.reset(options=options)
            for row, i in begun.items():
                own = i, float(noise[i]), torch.Generator().manual_seed(seed * 1_000_003 + i)
                playing[row] = _Recording(*own, observation, row) if row in new else _Kept(*own, finished[i])
            observation, over = _step(env, policy, observation, playing)
            recorded = [recording for recording in map(playing.pop, over) if isinstance(recording, _Recording)]
            for recording in recorded:
                episode = recording.episode(env.config, *starts[recording.index], "expert" if policy is None else "policy")
                finished[recording.index] = episode
                if keep:
                    save_episode(keep / f"{recording.index:06d}.npz", episode)
            if recorded:
                bar.advance(len(recorded), success=float(np.mean([episode.success[-1] for episode in finished.values()])))
    return [finished[i] for i in range(len(starts))]


class _Kept:
    """An episode that an earlier call has played, in the row and the chunks that it took then."""

    def __init__(self, index: int, noise: float, generator: torch.Generator, episode: Episode):
        self.index, self.noise, self.generator, self.episode = index, noise, generator, episode
        self.steps = 0  # that have passed

    def show(self, observation: Observation, row: int) -> None:
        """Put what the policy saw of it into its row."""
        for camera, images in observation.images.items():
            images[row] = self.episode.frames[camera][self.steps]
        observation.state[row], observation.instruction[row] = self.episode.states[self.steps], self.episode.instruction

    def passes(self, chunk: int) -> bool:
        """Whether it is over after one more chunk of so many steps."""
        self.steps += chunk
        return self.steps >= len(self.episode.actions)


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


def _step(env, policy, observation: dict, playing: dict[int, _Recording | _Kept]) -> tuple[dict, list[int]]:
    """One chunk of every row that is playing: (the observation after it, rows whose episode is over)."""
    rows = np.array(sorted(playing))
    kept = [int(row) for row in rows if isinstance(playing[row], _Kept)]
    moving = [int(row) for row in rows if row not in kept]
    over = []
    if moving and policy is None:
        observation, _, terminated, truncated, info = env.step_expert()
        chunks = info["actions"]
    elif moving:
        seen = Observation.from_vector_env(observation)
        for row in kept:
            playing[row].show(seen, row)
        chunks = np.zeros(env.action_space.shape, np.float32)
        chunks[rows] = _choose(policy, seen.rows(rows), [playing[row] for row in rows])
        observation, _, terminated, truncated, info = env.step(chunks)
    for row in moving:
        playing[row].add(info, chunks[row], row)
        over += [row] if terminated[row] or truncated[row] else []
    over += [row for row in kept if playing[row].passes(env.config.chunk)]
    return observation, over


def _choose(policy, observation: Observation, recordings: list[_Recording | _Kept]) -> np.ndarray:
    """Chunks (B, T, A) clipped to the action space: the mean for rows of noise 0, a sample for the others, from each episode's own generator."""
    generators = [recording.generator for recording in recordings]  # some policies begin from noise even at their best
    chunk = policy.act(observation, explore=False, generator=generators).chunk
    noisy = np.flatnonzero([recording.noise > 0 for recording in recordings])
    if len(noisy):
        scale = np.array([recordings[i].noise for i in noisy])
        chunk[noisy] = policy.act(observation.rows(noisy), explore=True, scale=scale, generator=[generators[i] for i in noisy]).chunk
    check_actions(chunk, observation)
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
    """The finished episodes of a collection that was cut off, by number. Those of other starts stay, those that cannot be read go."""
    episodes = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            episode, i = load_episode(path), int(path.stem)
            same = i < len(starts) and (episode.info["task"], episode.info["start"]) == tuple(starts[i])
        except Exception as error:  # there is no end to what zipfile and numpy raise for a file that was cut
            say(f"{path}: cannot be read ({' '.join(str(error).split()) or type(error).__name__}); its episode is played again")
            path.unlink()
            continue
        if same:
            episodes[i] = episode
    return episodes
