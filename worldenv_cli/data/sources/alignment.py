"""Whether a recording's observations were taken before or after the action of their row, told by the simulator's states beside them."""

import numpy as np

CLEAR = 0.5  # the nearer of the two has to be this much nearer than the other
STILL = 1e-9


def observed_after(joints: np.ndarray, states: np.ndarray) -> bool | None:
    """True where `joints` (T, J) of a row are those that the next row of `states` (T, D) has, False where they are those of the same row; None where
    that cannot be told, as of an arm that does not move.

    `states` are from before the action of their row, and hold the joints next to each other somewhere. The first row is not looked at: scripts that
    play recordings again take its state from the recording and its observation from the simulator.
    """
    if len(joints) != len(states) or len(joints) < 4 or states.ndim != 2 or joints.ndim != 2 or joints.shape[1] > states.shape[1]:
        return None
    joints, same, following = joints[1:-1, None], *(_windows(states[rows], joints.shape[1]) for rows in (slice(1, -1), slice(2, None)))
    before, after = (np.abs(joints - shown).mean((0, 2)) for shown in (same, following))  # (windows,) mean distance
    place = np.nanargmin(np.minimum(before, after)) if np.isfinite(np.minimum(before, after)).any() else 0
    near, far = sorted((before[place], after[place]))
    if not near < CLEAR * far or far < STILL:
        return None
    return bool(after[place] < before[place])


def _windows(states: np.ndarray, width: int) -> np.ndarray:
    """(T, D) -> (T, D - width + 1, width)"""
    return np.lib.stride_tricks.sliding_window_view(states, width, axis=1)
