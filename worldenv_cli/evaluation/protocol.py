"""The real evaluation: every policy from the same unseen starts, played to the horizon, judged with and without the reflector's stop."""

from collections.abc import Sequence

import numpy as np

from ..data.dataset import Episode
from ..reflector.compact import Reflector
from ..reflector.train import real_sequences
from .statistics import mcnemar, newcombe_paired, paired_counts, wilson

STOP_COUNTS = ("at_reflector_stop", "at_horizon", "false_stop")  # what `stopping` counts


def outcomes(episodes: Sequence[Episode]) -> np.ndarray:
    """(E,) bool: was the task achieved at any time within the horizon (Meta-World's own success)."""
    return np.array([bool(episode.success[-1]) for episode in episodes])


def stopping(episodes: Sequence[Episode], reflector: Reflector) -> dict:
    """The same episodes with the reflector deciding when to stop, against playing on to the horizon.

    Success means the same for both: the task stands achieved at that moment. An episode that is never stopped ends at the horizon.
    Returns counts {"at_reflector_stop", "at_horizon", "false_stop"} with n, and the mean control steps until the stop.
    """
    instantaneous = [np.array(episode.info["succeeding"][1:], bool) for episode in episodes]
    sequences = real_sequences(episodes, reflector.config.camera)
    scores = reflector.score_episodes([s.frames for s in sequences], [s.instruction for s in sequences])
    threshold = reflector.threshold.item()
    stops = [int(np.argmax(score[1:] >= threshold)) if (score[1:] >= threshold).any() else len(score) - 2 for score in scores]
    at_stop = [bool(flags[stop]) for flags, stop in zip(instantaneous, stops)]
    stopped = [bool((score[1:] >= threshold).any()) for score in scores]
    return {
        "at_reflector_stop": {"successes": sum(at_stop), "n": len(episodes)},
        "at_horizon": {"successes": sum(bool(flags[-1]) for flags in instantaneous), "n": len(episodes)},
        "false_stop": {"successes": sum(s and not ok for s, ok in zip(stopped, at_stop)), "n": sum(stopped)},
        "mean_stop": float(np.mean(stops)) + 1,
    }


def by_task(tasks: Sequence[str], success: np.ndarray) -> dict[str, dict]:
    """{task: {"successes", "n"}}."""
    tasks = np.array(tasks)
    return {task: {"successes": int(success[tasks == task].sum()), "n": int((tasks == task).sum())} for task in dict.fromkeys(tasks)}


def arm(name: str, tasks: Sequence[str], success: np.ndarray, environment_steps: int, **extra) -> dict:
    """One row of the main table."""
    interval = wilson(int(success.sum()), len(success))
    pooled = {"successes": int(success.sum()), "n": len(success), **interval._asdict()}
    return {
        "name": name,
        "real_environment_steps": environment_steps,
        "tasks": by_task(tasks, success),
        "pooled": pooled,
        "outcomes": success.tolist(),
        **extra,
    }


def compare(a: dict, b: dict, tasks: Sequence[str]) -> dict:
    """Two arms from the same starts: the paired difference b - a (Newcombe), McNemar's counts, for each task and pooled."""
    first, second, names = np.array(a["outcomes"]), np.array(b["outcomes"]), np.array(tasks)
    return {
        "a": a["name"],
        "b": b["name"],
        "per_task": {task: paired_counts(first[names == task], second[names == task]) for task in dict.fromkeys(tasks)},
        "difference": newcombe_paired(first, second)._asdict(),
        "mcnemar_p": mcnemar(first, second)["p"],
        "method": "paired difference, Newcombe (1998) method 10",
    }
