"""Pictures and videos of anybody's, decoded: measured before memory is spent on them."""

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from ..errors import UserError

AGAIN = "copy or download the dataset again"
MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1")  # of eight bits or less: alpha is dropped, grey becomes three equal colours
OTHER_FILES = {b"GIF8": "GIF", b"RIFF": "WebP", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"\0\0\0\x0cjP": "JPEG 2000"}  # by how they begin
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
        kind = next((kind for start, kind in OTHER_FILES.items() if data.startswith(start)), None)
        if kind:
            raise UserError(f"{where}: not a whole PNG or JPEG picture, but a {kind} file; {LEAVE_OUT}, or convert it") from error
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
    """What a video file holds."""

    frames: int
    rate: float  # frames a second, on average
    height: int
    width: int
    number: dict[int, int]  # {a frame's time in the stream's units: its number, in the order in which frames are shown}; empty where it has no times


def video_facts(path: Path) -> VideoFacts:
    """Raises UserError where there is no whole video, or PyAV is missing."""
    if not path.is_file():
        raise UserError(f"{path}: missing; {AGAIN}")
    status = path.stat()
    return _video_facts(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _video_facts(path: Path, *_) -> VideoFacts:
    with _opened(path) as (container, stream):
        rate = stream.average_rate or stream.base_rate
        times = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
        if not times or not rate:
            raise UserError(f"{path}: a video without frames; {AGAIN}")
        ordered = sorted(times) if None not in times and len(set(times)) == len(times) else []
        number = {time: index for index, time in enumerate(ordered)}
        return VideoFacts(len(times), float(rate), stream.height, stream.width, number)


def video_frames(path: Path, numbers: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, H, W, 3) uint8: these frames of a video, ascending, counted from its beginning in the order in which they are shown."""
    facts = video_facts(path)
    if (facts.height, facts.width) != (height, width):
        raise UserError(f"{path}: pictures of {facts.height} x {facts.width}, expected {height} x {width} as the source declares it")
    if numbers[-1] >= facts.frames:
        raise UserError(f"{path}: {facts.frames} frames, expected frame {numbers[-1]}; {AGAIN}")
    frames = room_for(str(path), len(numbers), height, width)
    if not (facts.number and _decode(path, numbers, frames, facts.number)) and not _decode(path, numbers, frames, {}):
        raise UserError(f"{path}: ends before frame {numbers[-1]}; {AGAIN}")
    return frames


def _decode(path: Path, numbers: np.ndarray, frames: np.ndarray, known: dict[int, int]) -> bool:
    """Fill `frames`; False where some were not found. With `known`, {time: number}, decoding begins at a key frame before the first one."""
    rows = {int(number): row for row, number in enumerate(numbers)}
    with _opened(path) as (container, stream):
        if known and numbers[0] > 0:
            time = next(time for time, number in known.items() if number == numbers[0])
            container.seek(time, stream=stream)
        for counted, frame in enumerate(container.decode(stream)):
            row = rows.pop(known.get(frame.pts) if known else counted, None)
            if row is not None:
                frames[row] = frame.to_ndarray(format="rgb24")
            if not rows:
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
