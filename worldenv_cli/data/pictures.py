"""Pictures and videos of anybody's, decoded: measured before memory is spent on them."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from ..errors import UserError

AGAIN = "copy or download the dataset again"
MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1")  # of eight bits or less: alpha is dropped, grey becomes three equal colours
LEAVE_OUT = "leave the camera out with --cameras"


def decoded(data: bytes | None, height: int, width: int, where: str) -> np.ndarray:
    """A PNG or JPEG of that size -> (H, W, 3) uint8. Transparency is dropped, grey pictures get three equal colours."""
    if not data:
        raise UserError(f"{where}: no picture there, expected a PNG or JPEG; leave the episode out")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.mode not in MODES:
                told = "16-bit numbers, a depth map perhaps" if image.mode[0] in "IF" else f"mode {image.mode}"
                raise UserError(f"{where}: a picture of {told}, expected eight bits a colour; {LEAVE_OUT}, or convert it")
            if (image.height, image.width) != (height, width):
                raise UserError(f"{where}: a picture of {image.height} x {image.width}, expected {height} x {width} as the source declares it")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: not a whole PNG or JPEG picture; {AGAIN}") from error


def room_for(where: str, count: int, height: int, width: int) -> np.ndarray:
    """(count, height, width, 3) uint8, not set. Raises UserError where this machine's memory does not hold them."""
    size = count * height * width * 3
    if size > psutil.virtual_memory().available:
        raise UserError(
            f"{where}: {count:,} pictures of {height} x {width} take {size / 2**30:,.0f} GiB, more memory than is free; leave the episode out"
        )
    return np.empty((count, height, width, 3), np.uint8)


@dataclass(frozen=True)
class VideoFacts:
    """What a video file says of itself."""

    frames: int
    rate: float  # frames a second
    height: int
    width: int


def video_facts(path: Path) -> VideoFacts:
    """Raises UserError where there is no whole video, or PyAV is missing."""
    with _opened(path) as (container, stream):
        frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        rate = stream.average_rate or stream.base_rate
        if not frames or not rate:
            raise UserError(f"{path}: a video without frames; {AGAIN}")
        return VideoFacts(frames, float(rate), stream.height, stream.width)


def video_frames(path: Path, numbers: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, H, W, 3) uint8: these frames of a video, ascending, counted from its beginning in the order in which they are shown."""
    facts = video_facts(path)
    if (facts.height, facts.width) != (height, width):
        raise UserError(f"{path}: pictures of {facts.height} x {facts.width}, expected {height} x {width} as the source declares it")
    if numbers[-1] >= facts.frames:
        raise UserError(f"{path}: {facts.frames} frames, expected frame {numbers[-1]}; {AGAIN}")
    frames = room_for(str(path), len(numbers), height, width)
    if not (numbers[0] > 0 and _decode(path, numbers, frames, facts.rate)) and not _decode(path, numbers, frames, None):
        raise UserError(f"{path}: ends before frame {numbers[-1]}; {AGAIN}")
    return frames


def _decode(path: Path, numbers: np.ndarray, frames: np.ndarray, rate: float | None) -> bool:
    """Fill `frames`; False where that fails. With a rate it begins at a key frame before the first one, which needs frames at even times."""
    wanted = {int(number): row for row, number in enumerate(numbers)}
    left, number = len(numbers), -1
    with _opened(path) as (container, stream):
        begin = float((stream.start_time or 0) * stream.time_base)
        if rate is not None:
            container.seek(int((begin + (numbers[0] - 0.5) / rate) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if rate is None:
                number += 1
            else:
                before, number = number, round((frame.time - begin) * rate)
                if number != before + 1 and before >= 0 or before < 0 and number > numbers[0]:
                    return False
            if number in wanted:
                frames[wanted[number]] = frame.to_ndarray(format="rgb24")
                left -= 1
                if not left:
                    return True
    return False


class _opened:
    """A video file and its first video stream, its errors in one line."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        try:
            import av
        except ModuleNotFoundError as error:
            raise UserError(f"{self.path}: reading videos needs PyAV; pip install 'worldenv[video]'") from error
        if not self.path.is_file():
            raise UserError(f"{self.path}: missing; {AGAIN}")
        self.broken = (av.FFmpegError, IndexError)
        try:
            self.container = av.open(str(self.path))
            stream = self.container.streams.video[0]
        except self.broken as error:
            raise UserError(f"{self.path}: not a whole video ({str(error).splitlines()[0]}); {AGAIN}") from error
        stream.codec_context.thread_count = 1  # episodes are decoded side by side
        return self.container, stream

    def __exit__(self, kind, error, traceback) -> None:
        self.container.close()
        if isinstance(error, self.broken):
            raise UserError(f"{self.path}: not a whole video ({str(error).splitlines()[0]}); {AGAIN}") from error
