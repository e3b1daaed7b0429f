"""The spaces of one row, real or imagined: what a policy sees and what it answers with; and whether a caller's arrays fit them."""

from collections.abc import Iterable

import gymnasium
import numpy as np


def chunk_spaces(
    cameras: Iterable[str], size: int, state_size: int, chunk: int, action_size: int
) -> tuple[gymnasium.spaces.Dict, gymnasium.spaces.Box]:
    """(observation space, action space) of a single row: pictures of size x size pixels, proprioception, an instruction; a chunk in [-1, 1]."""
    observation = gymnasium.spaces.Dict(
        {
            "images": gymnasium.spaces.Dict({camera: gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8) for camera in cameras}),
            "state": gymnasium.spaces.Box(-np.inf, np.inf, (state_size,), np.float32),
            "instruction": gymnasium.spaces.Text(512, min_length=0, charset=frozenset(map(chr, range(32, 0x250)))),
        }
    )
    return observation, gymnasium.spaces.Box(-1, 1, (chunk, action_size), np.float32)


def checked_chunks(chunks, shape: tuple[int, ...], moving: np.ndarray) -> np.ndarray:
    """Action chunks (B, T, A) as float32. Raises ValueError for another shape than `shape`, and for numbers of `moving` rows that are not finite."""
    try:
        chunks = np.asarray(chunks)
        if np.iscomplexobj(chunks):
            raise TypeError("complex numbers")
        with np.errstate(over="ignore"):  # told below
            chunks = chunks.astype(np.float32, copy=False)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"actions are not an array of numbers ({error}), expected one of shape {shape}") from None
    if chunks.shape != shape:
        raise ValueError(f"actions have shape {chunks.shape}, expected {shape}: rows, control steps of a chunk, numbers of an action")
    wrong = moving[~np.isfinite(chunks[moving]).all((1, 2))]
    if len(wrong):
        value = chunks[wrong[0]][~np.isfinite(chunks[wrong[0]])][0]
        raise ValueError(f"actions of row {wrong[0]} hold {value}, expected finite numbers; what the policy was given or has learned is not finite")
    return chunks


def checked_mask(mask, rows: int) -> np.ndarray:
    """gymnasium's `reset_mask` (rows,) bool. Raises ValueError for another shape or type."""
    mask = np.asarray(mask)
    if mask.shape != (rows,) or mask.dtype != bool:
        raise ValueError(f"reset_mask has shape {mask.shape} and type {mask.dtype}, expected ({rows},) and bool")
    return mask
