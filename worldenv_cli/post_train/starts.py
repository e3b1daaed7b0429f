"""Where imagined groups begin: real first frames, and logged moments near the hard part (WoVR's keyframe starts, VLA-MBPO's branches)."""

from collections.abc import Sequence

import numpy as np

from ..data.dataset import Episode
from ..simulator.simulator import History, history_until
from .loop import StartPool


def start_pool(
    episodes: Sequence[Episode], resets: Sequence[tuple[str, History]], camera: str, chunk: int, seed: int, per_episode: int = 3
) -> StartPool:
    """First frames of all episodes and of extra resets; and a few moments of each episode, from the second chunk to one chunk before its end.

    An episode's end is its first success, or two thirds of a failure: what comes later leaves no time to do better.
    """
    rng, pool = np.random.default_rng(seed), StartPool()
    for episode in episodes:
        task = episode.info["task"]
        pool.first.setdefault(task, []).append(history_until(episode, camera, 0))
        end = int(np.argmax(episode.success)) if episode.success[-1] else 2 * len(episode.actions) // 3
        moments = np.arange(chunk, end - chunk + 1)
        if len(moments):
            chosen = rng.choice(moments, min(per_episode, len(moments)), replace=False)
            pool.middle.setdefault(task, []).extend(history_until(episode, camera, int(moment)) for moment in chosen)
    for task, history in resets:
        pool.first.setdefault(task, []).append(history)
    return pool


def reset_frames(env, starts: Sequence[tuple[str, int]]) -> list[tuple[str, History]]:
    """Pictures of fresh starts: they cost a reset of the scene, and no environment step."""
    found = []
    for first in range(0, len(starts), env.num_envs):
        batch = list(starts[first : first + env.num_envs])
        observation, _ = env.reset(options={"starts": batch})
        for row, (task, _) in enumerate(batch):
            frame, state = observation["images"][env.config.cameras[0]][row, None], observation["state"][row, None]
            found.append((task, History(frame, state, np.zeros((0, env.single_action_space.shape[-1]), np.float32), observation["instruction"][row])))
    return found
