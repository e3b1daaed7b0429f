"""The reflector's measured errors as the report shows them: pooled and by task, on real and on imagined frames of the same held-out episodes."""

from collections.abc import Sequence

import numpy as np

from ..evaluation.statistics import reliability
from .calibration import Scored, measure


def measured_errors(real: Sequence[Scored], imagined: Sequence[Scored], threshold: float) -> dict:
    """{"threshold", "real", "imagined", "per_task": [...], "reliability": [[p, y, n], ...] (imagined frames)}."""
    tasks = list(dict.fromkeys(scored.task for scored in real))
    frames = np.concatenate([scored.scores[1:] for scored in imagined])
    labels = np.concatenate([scored.success[1:] for scored in imagined])
    return {
        "threshold": threshold,
        "real": measure(real, threshold),
        "imagined": measure(imagined, threshold),
        "per_task": [
            {"task": task, "frames": kind, **measure([scored for scored in found if scored.task == task], threshold)}
            for task in tasks
            for kind, found in (("real", real), ("imagined", imagined))
        ],
        "reliability": [list(row) for row in reliability(frames, labels)],
    }


def why_never(shortage: dict | None) -> str:
    """One sentence about a threshold above 1, by `train.calibrate`'s shortage of failed episodes."""
    if shortage is None:
        return "It never stops an episode: it is certain of the success of too many failed calibration episodes"
    failed, needed, share = shortage["failed"], shortage["needed"], shortage["false_termination"]
    promise = f"{needed} are needed to promise that it stops {100 * share:g}% of failures at most"
    return f"It never stops an episode: {failed} failed calibration episodes, {promise}"
