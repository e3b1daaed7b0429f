"""What post-training maximises: leave-one-out advantages, PPO's clipped ratio for each control step, and what holds the policy in place."""

import numpy as np
import torch
from torch import Tensor


def leave_one_out(reward: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(E,) advantage: an episode's reward minus the mean of the *others* that began at the same start (RLOO). Groups of one give zero,
    and so, exactly, do groups of equal rewards: an optimizer that scales its steps would make as much of their rounding as of anything.

    Rewards are probabilities and stay so: rounded to 0 and 1, most groups would have no gradient at all.
    """
    count = np.bincount(group)[group]
    total = np.bincount(group, weights=reward)[group]
    first = np.zeros(group.max() + 1, int)
    first[group[::-1]] = np.arange(len(group))[::-1]  # an episode of every group
    unequal = np.bincount(group, weights=reward != reward[first[group]])[group] > 0
    return np.where((count > 1) & unequal, reward - (total - reward) / np.maximum(count - 1, 1), 0).astype(np.float32)


def clipped_objective(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, played: Tensor, clip: float) -> tuple[Tensor, dict[str, float]]:
    """PPO loss over control steps: log_prob and old_log_prob (N, T), advantage (N,) broadcast over its episode's steps, played (N, T) bool.

    Returns the loss (to be minimised) and {"clip_fraction", "ratio_max"}.
    """
    ratio = torch.exp(log_prob - old_log_prob)
    gain = advantage[:, None]
    surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    weight = played.float()
    with torch.no_grad():
        moved = ((ratio - 1).abs() > clip) & played
        figures = {"clip_fraction": (moved.sum() / played.sum()).item(), "ratio_max": ratio[played].max().item()}
    return -(surrogate * weight).sum() / weight.sum(), figures
