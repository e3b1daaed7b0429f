"""What happened, to look at: episodes as videos, two episodes side by side, contact sheets.

Frames are RGB uint8 (T, H, W, 3) everywhere. Policies see pictures of 64 to 256 pixels a side; they are enlarged by whole factors
with nearest neighbours, so that what is shown is what the policy saw.
"""

import logging
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ..destination import SOFTWARE

logger = logging.getLogger(__name__)

SMALLEST_SIDE = 256  # pixels: below this players and browsers blur
CAPTION_HEIGHT = 28  # pixels, even
CURVE_HEIGHT = 56  # pixels, even
INK, PAPER, SUCCESS, FAILURE = (235, 235, 235), (24, 24, 27), (84, 184, 118), (150, 150, 155)


def save_video(path: str | Path, frames: np.ndarray, fps: float) -> Path:
    """Write an H.264 mp4 that every browser plays, and return its path. Without PyAV it is an animated WebP beside the asked-for name."""
    path = Path(path)
    frames = _pad_to_even(enlarge(frames))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _av_installed():
        return save_animation(path.with_suffix(".webp"), frames, fps)

    import av

    height, width = frames.shape[1:3]
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@cache
def _av_installed() -> bool:
    try:
        import av  # noqa: F401
    except ImportError:
        logger.warning("PyAV is not installed (pip install av): videos are written as animated WebP instead of mp4")
        return False
    return True


def save_animation(path: str | Path, frames: np.ndarray, fps: float) -> Path:
    """Write an animated GIF or WebP, by the name's ending, that loops for ever: for places that show no mp4, such as a README."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return path


def side_by_side(
    left: np.ndarray,
    right: np.ndarray,
    labels: tuple[str, str],
    success_left: bool | None = None,
    success_right: bool | None = None,
) -> np.ndarray:
    """Two episodes of (T, H, W, 3) in one video, each under a caption with its outcome if known. The shorter one holds its last frame."""
    length = max(len(left), len(right))
    panels = []
    for frames, label, success in zip((left, right), labels, (success_left, success_right), strict=True):
        frames = enlarge(frames)
        held = np.minimum(np.arange(length), len(frames) - 1)
        strip = np.broadcast_to(caption(label, frames.shape[2], success), (length, CAPTION_HEIGHT, frames.shape[2], 3))
        panels.append(np.concatenate([strip, frames[held]], axis=1))
    return np.concatenate([panels[0], np.full_like(panels[0][:, :, :4], PAPER), panels[1]], axis=2)


def stacked(columns: list[tuple[str, np.ndarray, np.ndarray]], smallest: int = 128) -> np.ndarray:
    """Several pairs of episodes (T, H, W, 3) in one small video: a column for each (label, above, below). Shorter ones hold their last frame."""
    length = max(len(frames) for _, *pair in columns for frames in pair)
    blocks = []
    for label, *pair in columns:
        held = [enlarge(frames, smallest)[np.minimum(np.arange(length), len(frames) - 1)] for frames in pair]
        strip = np.broadcast_to(caption(label, held[0].shape[2]), (length, CAPTION_HEIGHT, held[0].shape[2], 3))
        blocks.append(np.pad(np.concatenate([strip, *held], axis=1), ((0, 0), (0, 0), (0, 4), (0, 0)), constant_values=PAPER[0]))
    return np.concatenate(blocks, axis=2)


def with_curve(frames: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """(T, H, W, 3), enlarged, over a strip in which the reflector's probability (T,) is drawn up to each frame; the dashes are the threshold."""
    frames = enlarge(frames)
    width, height = frames.shape[2], CURVE_HEIGHT
    xs = np.linspace(4, width - 5, max(len(frames), 2))
    ys = (height - 5) - (height - 10) * np.clip(scores, 0, 1)
    line = (height - 5) - (height - 10) * threshold
    strips = []
    for moment in range(len(frames)):
        strip = Image.new("RGB", (width, height), PAPER)
        draw = ImageDraw.Draw(strip)
        for x in range(4, width - 4, 8):
            draw.line([(x, line), (x + 3, line)], fill=FAILURE)
        path = list(zip(xs[: moment + 1].tolist(), ys[: moment + 1].tolist(), strict=True))
        if len(path) > 1:
            draw.line(path, fill=SUCCESS, width=2)
        x, y = path[-1]
        draw.ellipse([(x - 2, y - 2), (x + 2, y + 2)], fill=SUCCESS)
        strips.append(np.asarray(strip))
    return np.concatenate([frames, np.stack(strips)], axis=1)


def contact_sheet(path: str | Path, rows: list[tuple[str, np.ndarray]], columns: int = 8) -> Path:
    """Write a PNG with one row for each (label, frames): `columns` frames, evenly spread from the first to the last."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = []
    for label, frames in rows:
        chosen = np.unique(np.linspace(0, len(frames) - 1, columns).round().astype(int))
        tiles = np.pad(enlarge(frames[chosen], smallest=96), ((0, 0), (1, 1), (1, 1), (0, 0)))
        strip = np.concatenate(list(tiles), axis=1)
        blocks.append(np.concatenate([caption(label, strip.shape[1]), strip]))
    width = max(block.shape[1] for block in blocks)
    padded = [np.pad(block, ((0, 0), (0, width - block.shape[1]), (0, 0))) for block in blocks]
    known = PngInfo()
    known.add_text("Software", SOFTWARE)  # so that this file, and no other, may be drawn anew
    Image.fromarray(np.concatenate(padded)).save(path, format="PNG", pnginfo=known)
    return path


def caption(text: str, width: int, success: bool | None = None) -> np.ndarray:
    """(CAPTION_HEIGHT, width, 3): a strip with the text, shortened to fit, and the outcome at its right end if there is one."""
    strip = Image.new("RGB", (width, CAPTION_HEIGHT), PAPER)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(14)
    middle, free = CAPTION_HEIGHT // 2, width - 8
    if success is not None:
        outcome, colour = ("success", SUCCESS) if success else ("failure", FAILURE)
        draw.text((width - 6, middle), outcome, fill=colour, font=font, anchor="rm")
        free -= int(font.getlength(outcome)) + 12
    if font.getlength(text) > free:
        while text and font.getlength(text + "...") > free:
            text = text[:-1]
        text += "..."
    draw.text((6, middle), text, fill=INK, font=font, anchor="lm")
    return np.asarray(strip)


def enlarge(frames: np.ndarray, smallest: int = SMALLEST_SIDE) -> np.ndarray:
    """(T, H, W, 3) by the whole factor that brings the smaller side to `smallest` pixels or more."""
    factor = -(-smallest // min(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _pad_to_even(frames: np.ndarray) -> np.ndarray:
    """yuv420p halves the colour planes, so both sides have to be even: the last row and column are doubled."""
    height, width = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
