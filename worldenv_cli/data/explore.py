"""Exploration: the stochastic policy in the real environment, failures kept, its cost counted; and which episodes may be used for what."""

from collections.abc import Sequence
from pathlib import Path

from ..envs.starts import starts
from ..envs.vector import RealVectorEnv
from ..rollout import play
from .config import ExploreConfig
from .dataset import Episode


def explore(env: RealVectorEnv, policy, config: ExploreConfig, calibration_share: float, seed: int, keep: Path | None = None) -> list[Episode]:
    """Rollouts with info["split"] "train", "calibration" or "held-out"; the noise levels are mixed alike in all three."""
    tasks = list(env.config.tasks)
    count = config.episodes + config.held_out
    chosen = starts("exploration", tasks, count, run_seed=seed)
    levels = [config.noise[(index // len(tasks)) % len(config.noise)] for index in range(len(chosen))]
    episodes = play(env, chosen, policy, noise=levels, seed=seed, description="exploration", keep=keep)
    split(episodes, len(tasks), config.episodes, calibration_share)
    return episodes


def split(episodes: Sequence[Episode], tasks: int, trained: int, calibration_share: float) -> None:
    """Mark each task's first `trained` episodes for training, the last share of those for calibration, and the rest as held out."""
    calibration = max(round(trained * calibration_share), 1)
    for index, episode in enumerate(episodes):
        number = index // tasks
        episode.info["split"] = "held-out" if number >= trained else "calibration" if number >= trained - calibration else "train"


def of_split(episodes: Sequence[Episode], *names: str) -> list[Episode]:
    """Those of a split; an episode that was never split, such as a demonstration, is there to be trained on."""
    return [episode for episode in episodes if episode.info.get("split", "train") in names]
