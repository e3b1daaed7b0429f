"""Write a LeRobotDataset v3.0 while its episodes are being made: one of them in memory at a time.

The numbers (not the pictures) of all episodes are kept to the end, for exact statistics.
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..atomic import write_text
from ..errors import UserError
from .layout import (
    CAMERA,
    CLOSING_ROW,
    CODEBASE_VERSION,
    DATA,
    DESCRIPTION,
    EPISODES,
    FILES_IN_CHUNK,
    HELD,
    INFO,
    STATISTICS,
    TASKS,
    VIDEO,
    Episode,
    check_episode,
    make_features,
)
from .video_writer import VideoFiles, video_feature
from .written import UNFINISHED, Written

VIDEO_SIZE = 200 * 2**20  # bytes, all cameras together, from which the next episode begins new files


def write_dataset(
    folder: Path | str,
    episodes: Iterable[Episode],
    *,
    fps: float,
    state_names: Sequence[str],
    action_names: Sequence[str],
    description: dict,
    robot_type: str | None,
    data_files_size_in_mb: int = 100,
    video: bool = False,
    resume: bool = False,
    name: Callable[[Episode], str] | None = None,
    refuse: Callable[[UserError], None] | None = None,
) -> None:
    """Write straight into `folder`, `meta/info.json` last: a folder without it was cut off. The caller makes the folder appear at once.

    fps is the rate of the actions (control steps), in Hz; `description` becomes meta/worldenv.json. With `resume` the episodes go on behind
    those of the data files that a call before has finished: see `finished_episodes`. Pictures are PNG inside the tables, nothing lost, or with
    `video` H.264 beside them. `name` says what an episode is called where
    it comes from, for messages; `refuse` is given what is wrong with an episode that then is left out, instead of raising it.
    """
    folder = Path(folder)
    if (folder / INFO).exists() or ((folder / "data").exists() and not resume):
        raise UserError(f"{folder}: holds a dataset or part of one, expected none, since datasets are not changed; delete it or write elsewhere")
    if not isinstance(fps, (int, float)) or not 0 < fps < float("inf"):
        raise UserError(f"{folder}: fps is {fps!r}, expected the actions a second, above 0; change the control rate")
    fps = int(fps) if fps == int(fps) else float(fps)
    written = Written(folder, resume=resume)
    filmed = VideoFiles(folder, fps) if video else None
    with ThreadPoolExecutor(os.cpu_count()) as pool, _DataFiles(written, filmed, data_files_size_in_mb * 2**20) as files:
        for episode in episodes:
            where = name(episode) if name else f"{folder}: episode {len(written.rows)}"
            if not written.features:
                written.features = make_features(where, episode, list(state_names), list(action_names))
                if video:
                    cameras = {name: feature for name, feature in written.features.items() if feature["dtype"] == "image"}
                    written.features |= {name: video_feature(feature["shape"], fps) for name, feature in cameras.items()}
            try:
                check_episode(where, episode, written.features)
            except UserError as error:
                if refuse is None:
                    raise
                refuse(error)
                continue
            pictures = {} if video else episode.frames
            encoded = {CAMERA + camera: pool.map(_encode, frames) for camera, frames in pictures.items()}  # while this thread counts
            numbers, row, colours = written.describe(episode, fps)
            written.add(numbers, row | files.write(_table(numbers, encoded, _schema(written.features)), episode.frames), colours)
    if not written.rows:
        raise UserError(f"{folder}: no episodes to write, expected one at least; check what they are made from")
    _write_meta(folder, written, description)
    info = {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": robot_type,
        "total_episodes": len(written.rows),
        "total_frames": written.rows[-1]["dataset_to_index"],
        "total_tasks": len(written.tasks),
        "chunks_size": FILES_IN_CHUNK,
        "data_files_size_in_mb": data_files_size_in_mb,
        "video_files_size_in_mb": VIDEO_SIZE // 2**20,
        "fps": fps,
        "splits": {"train": f"0:{len(written.rows)}"},
        "data_path": DATA,
        "video_path": VIDEO if video else None,
        "features": written.features,
    }
    write_text(folder / INFO, json.dumps(info, indent=4))
    shutil.rmtree(folder / UNFINISHED)


def finished_episodes(folder: Path | str) -> list[dict]:
    """The `info` of every episode that lies in a whole data file of an unfinished dataset, from which `write_dataset` can go on."""
    return [json.loads(row["worldenv_info"]) for row in Written(Path(folder), resume=True).rows]


def _write_meta(folder: Path, written: Written, description: dict) -> None:
    import pandas

    (folder / EPISODES).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(written.rows), folder / EPISODES, compression="snappy")
    pandas.DataFrame({"task_index": list(written.tasks.values())}, index=list(written.tasks)).to_parquet(folder / TASKS)
    (folder / STATISTICS).write_text(json.dumps(written.statistics(), indent=4))
    (folder / DESCRIPTION).write_text(json.dumps({"closing_row": CLOSING_ROW.format(action=HELD), **description}, indent=4, allow_nan=False))


class _DataFiles:
    """The data files: one row group an episode, and a new file when the next episode would make the last one too large."""

    def __init__(self, written: Written, filmed: VideoFiles | None, size: int):
        self.written, self.filmed, self.size = written, filmed, size  # bytes
        self.sink, self.writer = None, None

    def write(self, table: pa.Table, frames: dict[str, np.ndarray]) -> dict[str, float | int]:
        """Returns where the episode went, as meta/episodes says it."""
        full = self.writer is not None and self.sink.tell() + table.nbytes > self.size
        if full or (self.filmed and self.filmed.size > VIDEO_SIZE):
            self._finish()
        place = divmod(self.written.files, FILES_IN_CHUNK)
        if self.writer is None:
            path = self.written.folder / DATA.format(chunk_index=place[0], file_index=place[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            self.sink = path.open("wb")
            self.writer = pq.ParquetWriter(self.sink, table.schema, compression="snappy")
        self.writer.write_table(table, row_group_size=len(table))
        found = {"data/chunk_index": place[0], "data/file_index": place[1]}
        return found | (self.filmed.write(frames, self.written.files) if self.filmed else {})

    def _finish(self) -> None:
        self._close()
        self.written.keep_file()

    def _close(self) -> None:
        self.writer.close()
        self.sink.flush()
        os.fsync(self.sink.fileno())
        self.sink.close()
        if self.filmed:
            self.filmed.close()
        self.writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *_) -> None:
        """A file that was cut off by an error is closed, but does not count as whole."""
        if self.writer is not None:
            self._finish() if kind is None else self._close()


def _schema(features: dict[str, dict]) -> pa.Schema:
    """The columns as `datasets` would write them: the "huggingface" metadata tells a reader which of them are pictures."""
    import datasets

    def column_type(feature: dict):
        if feature["dtype"] == "image":
            return datasets.Image()
        value = datasets.Value(feature["dtype"])
        return value if feature["shape"] == [1] else datasets.List(value, length=feature["shape"][0])

    return datasets.Features({name: column_type(feature) for name, feature in features.items() if feature["dtype"] != "video"}).arrow_schema


def _table(numbers: dict[str, np.ndarray], encoded: dict[str, Iterable[bytes]], schema: pa.Schema) -> pa.Table:
    arrays = []
    for name, column_type in zip(schema.names, schema.types, strict=True):
        if name in encoded:
            pictures = [{"bytes": png, "path": f"frame-{row:06d}.png"} for row, png in enumerate(encoded[name])]
            arrays.append(pa.array(pictures, type=column_type))
        elif pa.types.is_fixed_size_list(column_type):
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(numbers[name].reshape(-1)), type=column_type))
        else:
            arrays.append(pa.array(numbers[name].reshape(-1), type=column_type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _encode(frame: np.ndarray) -> bytes:
    """(H, W, 3) uint8 -> PNG, packed fast rather than small."""
    png = io.BytesIO()
    Image.fromarray(frame).save(png, format="PNG", compress_level=1)
    return png.getvalue()
