"""Episodes as videos beside a dataset's tables: one file for each camera and data file, H.264, which decodes on any machine."""

from fractions import Fraction
from pathlib import Path

import numpy as np

from ..errors import UserError
from .layout import CAMERA, FILES_IN_CHUNK, VIDEO

# every fifth frame can be jumped to; no frames that need later ones, so that times are as simple as they look
OPTIONS = {"crf": "18", "g": "5", "bf": "0", "preset": "fast"}


def video_feature(shape: list[int], fps: float) -> dict:
    """The entry of info.json for a camera that is filmed; shape [H, W, 3]."""
    about = {"codec": "h264", "pix_fmt": "yuv420p", "fps": fps, "height": shape[0], "width": shape[1], "channels": 3, "is_depth_map": False}
    info = {**{f"video.{name}": value for name, value in about.items()}, "has_audio": False}
    return {"dtype": "video", "shape": shape, "names": ["height", "width", "channel"], "info": info}


class VideoFiles:
    """The videos that belong to the data file which is being written; all of them begin and end with it."""

    def __init__(self, folder: Path, fps: float):
        self.folder, self.fps, self.size = folder, fps, 0  # bytes so far
        self._open: dict[str, tuple] = {}  # camera -> (container, stream, frames so far)

    def write(self, frames: dict[str, np.ndarray], number: int) -> dict[str, float | int]:
        """Append an episode's pictures, {camera: (T+1, H, W, 3) uint8}, to data file `number`'s; returns what meta/episodes says of them."""
        import av

        chunk, file = divmod(number, FILES_IN_CHUNK)
        places = {}
        for camera, pictures in frames.items():
            if camera not in self._open:
                self._open[camera] = self._begin(camera, chunk, file, pictures.shape[1:3])
            container, stream, done = self._open[camera]
            for index, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts = done + index
                self._mux(container, stream.encode(frame))
            self._open[camera] = container, stream, done + len(pictures)
            name = f"videos/{CAMERA}{camera}"
            places |= {f"{name}/chunk_index": chunk, f"{name}/file_index": file}
            places |= {f"{name}/from_timestamp": done / self.fps, f"{name}/to_timestamp": (done + len(pictures)) / self.fps}
        return places

    def _begin(self, camera: str, chunk: int, file: int, size: tuple[int, int]) -> tuple:
        import av

        if size[0] % 2 or size[1] % 2:
            raise UserError(f"camera {camera}: {size[0]} x {size[1]} pixels, expected even sides for a video; --resize them")
        path = self.folder / VIDEO.format(video_key=CAMERA + camera, chunk_index=chunk, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        container = av.open(str(path), "w")
        stream = container.add_stream("libx264", rate=Fraction(self.fps).limit_denominator(1001), options=OPTIONS)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        return container, stream, 0

    def _mux(self, container, packets) -> None:
        self.size += sum(packet.size for packet in packets)
        container.mux(packets)

    def close(self) -> None:
        for container, stream, _ in self._open.values():
            self._mux(container, stream.encode())
            container.close()
        self._open, self.size = {}, 0
