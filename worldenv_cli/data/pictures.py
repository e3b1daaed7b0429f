"""Pictures and videos of anybody's, decoded: measured before memory is spent on them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError

AGAIN = "copy or download the dataset again"


def decoded(data: bytes, height: int, width: int, where: str) -> np.ndarray:
    """A PNG or JPEG of that size -> (H, W, 3) uint8."""
    try:
        with Image.open(io.BytesIO(data or b""), formats=("PNG", "JPEG")) as image:
            found = (image.height, image.width, image.mode)
            if found != (height, width, "RGB"):
                raise UserError(f"{where}: a picture {found}, expected {(height, width, 'RGB')}; {AGAIN}")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: not a whole PNG or JPEG picture; {AGAIN}") from error


def video_frames(path: Path, numbers: np.ndarray, height: int, width: int, fps: float) -> np.ndarray:
    """(N, H, W, 3) uint8: these frames of a video, ascending, counted from its beginning at `fps`. Earlier ones are skipped from a key frame on."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading videos needs PyAV; pip install 'worldenv[video]'") from error
    if not path.is_file():
        raise UserError(f"{path}: missing; {AGAIN}")
    frames = np.empty((len(numbers), height, width, 3), np.uint8)
    done = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # episodes are decoded side by side
            if (stream.height, stream.width) != (height, width):
                raise UserError(f"{path}: pictures of {stream.height} x {stream.width}, expected {height} x {width} as meta/info.json says; {AGAIN}")
            container.seek(int(numbers[0] / fps / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                number = round(frame.time * fps)
                if number > numbers[done]:
                    raise UserError(f"{path}: frame {numbers[done]} is missing, expected {fps} frames a second; {AGAIN}")
                if number == numbers[done]:
                    frames[done] = frame.to_ndarray(format="rgb24")
                    done += 1
                    if done == len(numbers):
                        return frames
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{path}: not a whole video ({str(error).splitlines()[0]}); {AGAIN}") from error
    raise UserError(f"{path}: ends before frame {numbers[done]}; {AGAIN}")
