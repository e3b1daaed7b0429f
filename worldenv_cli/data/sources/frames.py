"""Pictures that somebody stored as arrays of numbers: converted where nothing is lost by it, refused in one line where something would be."""

import numpy as np

from ...errors import UserError
from .source import LARGEST

CHANNELS = (3, 4, 1)
NO_PICTURES = {"depth": "a depth map, no colours", "segmentation": "a segmentation, no colours"}
LARGEST_RATIO = 200  # of what is unpacked to what is stored, above ROOM; pictures of one colour reach 1000, but recordings are no such pictures
ROOM = 2**28  # bytes that are unpacked without looking at what they take on disk
SLACK = {2: 0.15, 4: 1e-3, 8: 1e-3}  # bytes of a float: how far a grey level can lie from the whole number that it was


def no_picture(name: str) -> str | None:
    """Why an array of that name is no colour picture; None where the name does not say so."""
    return next((why for word, why in NO_PICTURES.items() if word in name.lower()), None)


def size_of(shape: tuple[int, ...], where: str) -> list[int]:
    """[H, W] of an array of pictures: (T, H, W, C), (T, C, H, W) or grey (T, H, W)."""
    if len(shape) == 3:
        sides = shape[1:]
    elif len(shape) == 4 and shape[3] in CHANNELS:
        sides = shape[1:3]
    elif len(shape) == 4 and shape[1] in CHANNELS:
        sides = shape[2:]
    else:
        raise UserError(f"{where}: shape {shape}, expected pictures (T, H, W, 3); leave the camera out with --cameras, or convert it")
    if not all(1 <= side <= LARGEST for side in sides):
        raise UserError(f"{where}: shape {shape}, expected pictures with sides of 1 to {LARGEST}; leave the camera out with --cameras")
    return [int(side) for side in sides]


def check_unpacked(size: int, stored: int, where: str) -> None:
    """Refuse to unpack few bytes to gigabytes, before memory is taken for them."""
    if size > max(ROOM, LARGEST_RATIO * stored):
        raise UserError(f"{where}: {stored:,} bytes would unpack to {size:,}, far more than a recording's do; do not trust this file")


def looks_like_pictures(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether an array without a name that says so holds eight-bit pictures."""
    return dtype == np.uint8 and len(shape) == 4 and (shape[3] in CHANNELS or shape[1] in CHANNELS)


def colours(values: np.ndarray, where: str) -> np.ndarray:
    """(T, H, W, 3) uint8 of pictures in another layout or number: grey ones get three equal colours, opaque alpha is dropped."""
    size_of(values.shape, where)
    if values.ndim == 3:
        values = values[..., None]
    elif values.shape[3] not in CHANNELS:
        values = values.transpose(0, 2, 3, 1)
    values = _eight_bits(values, where)
    if values.shape[3] == 4:
        if (values[..., 3] != 255).any():
            raise UserError(f"{where}: pictures that are transparent in places, expected colours; put them on a background, or leave the camera out")
        values = values[..., :3]
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:3], 3)))


def _eight_bits(values: np.ndarray, where: str) -> np.ndarray:
    """uint8, exactly: whole numbers up to 255, or fractions of 255 in [0, 1], or eight bits stretched to sixteen."""
    if values.dtype == np.uint8 or not values.size:
        return values.astype(np.uint8)
    kind, low, high = values.dtype.kind, values.min(), values.max()
    if kind in "iu" and low >= 0 and high <= 255:
        return values.astype(np.uint8)
    if values.dtype == np.uint16 and not (values % 257).any():
        return (values // 257).astype(np.uint8)
    if kind == "f" and 0 <= low and high <= 255:
        levels = values.astype(np.float64) * (255 if high <= 1 else 1)
        whole = levels.round()
        if np.abs(levels - whole).max() <= SLACK.get(values.dtype.itemsize, 0):
            return whole.astype(np.uint8)
    raise UserError(
        f"{where}: {values.dtype} from {low:.6g} to {high:.6g}, expected uint8, or what is exactly that; convert it, or leave the camera out"
    )
