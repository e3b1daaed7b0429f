"""Pictures folded into blocks: (..., H, W, 3) uint8 <-> (..., 3 * block², H / block, W / block).

Small pictures are cheap to convolve but dear to move about and to convolve at full resolution on a CPU; every model here reads them folded.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def channels_first(frames: np.ndarray) -> Tensor:
    """Pictures (..., H, W, 3) -> (..., 3, H, W), still uint8."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3)))


def pack(frames: np.ndarray, block: int) -> Tensor:
    """Pictures (..., H, W, 3) uint8 -> packed (..., 3 * block², H / block, W / block) uint8."""
    return F.pixel_unshuffle(channels_first(frames), block)


def unpack(packed: Tensor, block: int) -> np.ndarray:
    """The inverse of `pack`."""
    return np.ascontiguousarray(np.moveaxis(F.pixel_shuffle(packed, block).cpu().numpy(), -3, -1))


def normalised(picture: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return picture.float() / 127.5 - 1


def quantised(picture: Tensor) -> Tensor:
    """The inverse of `normalised`: [-1, 1] -> uint8, as a camera would give it."""
    return ((picture + 1) * 127.5).round().to(torch.uint8)
