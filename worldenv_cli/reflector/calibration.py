"""Making the reflector's word a probability, choosing when to stop, and measuring both on episodes it has not seen.

The threshold is not set by hand (the paper's eta = 0.5): it is the smallest one that, on calibration episodes, stops at most a stated share of
the failed ones. Where these are too few for that share, nothing can be promised and the reflector never stops. Calibration episodes and the
held-out ones on which errors are reported are different episodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..evaluation.statistics import auc, expected_calibration_error
from .config import CalibrationConfig

NEVER = 2.0  # a threshold that no probability reaches


@dataclass
class Scored:
    """One episode under the reflector: P(success by frame) (N,), and what is true (N,) bool."""

    task: str
    scores: np.ndarray
    success: np.ndarray

    @property
    def best(self) -> float:
        return float(self.scores[1:].max())


def fit_scale_and_offset(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Platt scaling: the (scale, offset) of the logit with the greatest weighted likelihood, scale kept positive."""
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    x, y, weight = (torch.from_numpy(values).double() for values in (logits, labels, weights / weights.mean()))
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        scaled = parameters[0].exp() * x + parameters[1]
        # a little pull towards no change keeps perfectly separated episodes from an infinite scale
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scaled, y, weight) + 1e-3 * parameters.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = parameters.detach()
    return float(found[0].exp()), float(found[1])


def failures(episodes: Sequence) -> int:
    return sum(not episode.success[-1] for episode in episodes)


def failures_needed(rate: float) -> int:
    """The fewest failed calibration episodes from which a threshold can be had that stops at most a share `rate` of failures: 1 / rate - 1."""
    count = max(int(1 / rate) - 1, 1)
    while _rank(count, rate) > count:
        count += 1
    return count


def _rank(count: int, rate: float) -> int:
    """Split conformal: which of `count` best scores of failed episodes, from 1 and smallest first, a new one exceeds at most at this rate."""
    return int(np.ceil((count + 1) * (1 - rate)))


def choose_threshold(episodes: Sequence[Scored], config: CalibrationConfig) -> float:
    """The smallest threshold under which at most the stated share of failed episodes is ever stopped, those still to come included.

    With n failed episodes it is just above the ceil((n + 1)(1 - rate))-th smallest best score (split conformal); above 1, so that nothing stops,
    where that one is 1. NEVER with fewer than `failures_needed(rate)`, and where a score is not a number.
    """
    failed = np.sort([episode.best for episode in episodes if not episode.success[-1]])
    rank = _rank(len(failed), config.false_termination)
    if rank > len(failed) or np.isnan(failed).any():
        return NEVER
    return float(np.maximum(np.nextafter(np.float32(failed[rank - 1]), np.float32(2)), np.float32(config.threshold_min)))


def measure(episodes: Sequence[Scored], threshold: float) -> dict:
    """How good the reflector is on these episodes: each figure with what it counts.

    auc (episodes: best score against success), false_termination (failed episodes stopped), missed_success (successful ones never stopped),
    delay_steps (control steps from the true success to the stop; negative: too early), ece (frames), n_episodes, n_failed.
    """
    failed = [episode for episode in episodes if not episode.success[-1]]
    succeeded = [episode for episode in episodes if episode.success[-1]]
    stops = [int(np.argmax(episode.scores[1:] >= threshold)) + 1 for episode in succeeded if episode.best >= threshold]
    reached = [int(np.argmax(episode.success)) for episode in succeeded if episode.best >= threshold]
    interval = auc(np.array([episode.best for episode in episodes]), np.array([episode.success[-1] for episode in episodes]))
    frames = np.concatenate([episode.scores[1:] for episode in episodes])
    labels = np.concatenate([episode.success[1:] for episode in episodes])
    return {
        "auc": interval.estimate,
        "auc_low": interval.low,
        "auc_high": interval.high,
        "false_termination": _share([episode.best >= threshold for episode in failed]),
        "missed_success": _share([episode.best < threshold for episode in succeeded]),
        "delay_steps": float(np.mean(np.subtract(stops, reached))) if stops else None,
        "ece": float(expected_calibration_error(frames, labels)),
        "mean_score": float(np.mean([episode.scores[-1] for episode in episodes])),
        "success": _share([episode.success[-1] for episode in episodes]),
        "n_episodes": len(episodes),
        "n_failed": len(failed),
    }


def _share(flags: list) -> float | None:
    return float(np.mean(flags)) if flags else None
