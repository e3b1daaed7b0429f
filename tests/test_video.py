"""Videos decode to what was written; captions, sheets and the way without PyAV."""

import builtins

import numpy as np
import pytest
from PIL import Image, ImageSequence

from worldenv_cli.evaluation import video

COLOURS = np.array([[200, 40, 40], [40, 180, 60], [50, 60, 210], [120, 120, 120], [230, 220, 80]], dtype=np.uint8)


def clip(length=5, height=33, width=47):
    """(T, H, W, 3): a plain colour a frame."""
    return np.broadcast_to(COLOURS[np.arange(length) % 5][:, None, None], (length, height, width, 3)).copy()


def test_mp4_decodes_to_what_was_written(tmp_path):
    av = pytest.importorskip("av")
    frames = clip(13)
    path = video.save_video(tmp_path / "new" / "clip.mp4", frames, fps=20)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 20)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == (13, 264, 376, 3)  # 33 x 47 by 8
    assert np.abs(decoded.mean((1, 2)) - frames.mean((1, 2))).max() < 4


def test_odd_sides_are_padded_and_rates_may_be_broken(tmp_path):
    av = pytest.importorskip("av")
    path = video.save_video(tmp_path / "clip.mp4", clip(3, 257, 301), fps=12.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width, float(stream.average_rate)) == (258, 302, 12.5)
        assert sum(1 for _ in container.decode(video=0)) == 3


def test_without_av_a_webp_is_written_and_said(tmp_path, monkeypatch, caplog):
    real_import = builtins.__import__

    def no_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_av)
    video._av_installed.cache_clear()
    try:
        path = video.save_video(tmp_path / "clip.mp4", clip(), fps=10)
    finally:
        video._av_installed.cache_clear()
    assert path == tmp_path / "clip.webp" and "PyAV" in caplog.text
    with Image.open(path) as picture:
        assert picture.n_frames == 5 and picture.size == (376, 264)


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_animation(tmp_path, ending):
    path = video.save_animation(tmp_path / f"clip.{ending}", clip(), fps=10)
    with Image.open(path) as picture:
        means = [np.asarray(frame.convert("RGB")).mean((0, 1)) for frame in ImageSequence.Iterator(picture)]
        assert picture.info["loop"] == 0
    assert np.abs(np.stack(means) - COLOURS).max() < 8


def test_side_by_side_holds_the_shorter_one():
    left, right = clip(5, 64, 64), clip(2, 64, 64)
    frames = video.side_by_side(left, right, ("SFT", "post-trained"), False, True)
    assert frames.shape == (5, 256 + video.CAPTION_HEIGHT, 2 * 256 + 4, 3) and frames.dtype == np.uint8
    assert (frames[:, -1, 0] == left[:, 0, 0]).all()
    assert (frames[:, -1, -1] == COLOURS[[0, 1, 1, 1, 1]]).all()
    assert (frames[0, : video.CAPTION_HEIGHT] == video.SUCCESS).all(-1).any()


def test_stacked_puts_pairs_beside_each_other():
    frames = video.stacked([("one", clip(5, 32, 32), clip(3, 32, 32)), ("two", clip(2, 32, 32), clip(1, 32, 32))])
    assert frames.shape == (5, 28 + 2 * 128, 2 * (128 + 4), 3)
    top, bottom = frames[:, 28 + 64], frames[:, 28 + 128 + 64]
    np.testing.assert_array_equal(top[:, 64], COLOURS[[0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(bottom[:, 64], COLOURS[[0, 1, 2, 2, 2]])  # the shorter one holds its last frame
    np.testing.assert_array_equal(top[:, 132 + 64], COLOURS[[0, 1, 1, 1, 1]])


def test_captions_are_shortened_to_fit():
    long = video.caption("a label that is much too long for a picture of this size", 120, success=True)
    assert long.shape == (video.CAPTION_HEIGHT, 120, 3)
    ink = (long == video.INK).all(-1).any(0)
    outcome = (long == video.SUCCESS).all(-1).any(0)
    assert ink.any() and np.flatnonzero(ink).max() < np.flatnonzero(outcome).min()


def test_contact_sheet(tmp_path):
    path = video.contact_sheet(tmp_path / "sheet.png", [("real", clip(20, 64, 64)), ("imagined", clip(3, 64, 64))], columns=5)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (2 * (video.CAPTION_HEIGHT + 130), 5 * 130, 3)
    top = sheet[video.CAPTION_HEIGHT + 60, 65::130]
    assert (top == COLOURS[np.linspace(0, 19, 5).round().astype(int) % 5]).all()
    assert (sheet[-60, 65::130] == np.concatenate([COLOURS[:3], np.zeros((2, 3))])).all()
