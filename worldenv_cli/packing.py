"""Pictures folded into blocks: (..., H, W, 3) uint8 <-> (..., 3 * block², H / block, W / block).

Small pictures are cheap to convolve but dear to move about and to convolve at full resolution on a CPU; every model here reads them folded.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def pack(frames: np.ndarray, block: int) -> Tensor:
    """Pictures (..., H, W, 3) uint8 -> packed (..., 3 * block², H / block, W / block) uint8."""
    return F.pixel_unshuffle(torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3))), block)


def unpack(packed: Tensor, block: int) -> np.ndarray:
    """The inverse of `pack`."""
    return np.ascontiguousarray(np.moveaxis(F.pixel_shuffle(packed, block).numpy(), -3, -1))


def normalised(packed: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return packed.float() / 127.5 - 1
