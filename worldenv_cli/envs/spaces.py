"""The spaces of one row, real or imagined: what a policy sees and what it answers with."""

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
