"""Pictures folded into blocks: (..., H, W, 3) uint8 <-> (..., h, w, P), h = H / block, w = W / block, P = 3 * block².

Small pictures are cheap to convolve but dear to move about and to convolve at full resolution on a CPU; every model here reads them folded.
Channels come last in memory, where a CPU convolves them fastest: `movedim(-1, 1)` makes of them what torch expects, and copies nothing.
"""

import numpy as np
import torch
from torch import Tensor

ROWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # a block's row of pixels is moved about as one number


def planes(frames: np.ndarray) -> np.ndarray:
    """Pictures (..., H, W, 3) -> (..., 3, H, W)."""
    return np.stack([frames[..., colour] for colour in range(3)], -3)


def fold(pictures: Tensor, block: int) -> Tensor:
    """Pictures (..., 3, H, W) uint8 -> packed (..., h, w, P), within P by colour, row and column."""
    rows = pictures.contiguous().view(ROWS[block]).unflatten(-2, (-1, block))  # (..., 3, h, block, w)
    return rows.movedim((-3, -1), (-4, -3)).contiguous().flatten(-2).view(torch.uint8)


def unfold(packed: Tensor, block: int) -> Tensor:
    """The inverse of `fold`."""
    rows = packed.contiguous().view(ROWS[block]).unflatten(-1, (3, block))  # (..., h, w, 3, block)
    return rows.movedim((-4, -3), (-3, -1)).contiguous().flatten(-3, -2).view(torch.uint8)


def pack(frames: np.ndarray, block: int) -> Tensor:
    """Pictures (..., H, W, 3) uint8 -> packed (..., h, w, P) uint8."""
    return fold(torch.from_numpy(planes(frames)), block)


def unpack(packed: Tensor, block: int) -> np.ndarray:
    """The inverse of `pack`."""
    pictures = unfold(packed, block).cpu().numpy()
    return np.stack([pictures[..., colour, :, :] for colour in range(3)], -1)


def normalised(picture: Tensor, out: Tensor | None = None) -> Tensor:
    """uint8 -> float32 in [-1, 1]; written into `out`, where given."""
    return torch.add(torch.tensor(-1.0), picture, alpha=1 / 127.5, out=out)


def quantised(picture: Tensor) -> Tensor:
    """The inverse of `normalised`: [-1, 1] -> uint8, as a camera would give it."""
    return torch.add(torch.tensor(128.0), picture, alpha=127.5).to(torch.uint8)


def shifted(frames: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Pictures (B, ..., H, W, 3), every row seen from offsets (B, 2) pixels further down and right, edges repeated."""
    reach = int(np.abs(offsets).max()) if len(offsets) else 0
    height, width = frames.shape[-3:-1]
    padded = np.pad(frames, [(0, 0)] * (frames.ndim - 3) + [(reach, reach)] * 2 + [(0, 0)], mode="edge")
    return np.stack([padded[i, ..., y : y + height, x : x + width, :] for i, (y, x) in enumerate(reach + offsets)])
