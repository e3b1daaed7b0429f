"""Write a LeRobotDataset v3.0 while its episodes are being made: one of them in memory at a time.

The numbers (not the pictures) of all episodes are kept to the end, for exact statistics.
"""

import io
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..errors import UserError
from .layout import (
    CAMERA,
    CLOSING_ROW,
    CODEBASE_VERSION,
    DATA,
    DESCRIPTION,
    EPISODES,
    FILES_IN_CHUNK,
    INFO,
    STATISTICS,
    TASKS,
    Episode,
    check_episode,
    make_features,
)
from .statistics import as_lists, column_statistics, histogram, image_statistics, sample_frames


def write_dataset(
    folder: Path | str,
    episodes: Iterable[Episode],
    *,
    fps: int,
    state_names: Sequence[str],
    action_names: Sequence[str],
    description: dict,
    robot_type: str,
    data_files_size_in_mb: int = 100,
) -> None:
    """Write straight into `folder`, `meta/info.json` last: a folder without it was cut off. The caller makes the folder appear at once.

    fps is the rate of the actions (control steps), in Hz; `description` becomes meta/worldenv.json.
    """
    folder = Path(folder)
    if (folder / INFO).exists() or (folder / "data").exists():
        raise UserError(f"{folder}: holds a dataset or part of one, expected none, since datasets are not changed; delete it or write elsewhere")
    if not isinstance(fps, int) or fps < 1:
        raise UserError(f"{folder}: fps is {fps!r}, expected a whole number of actions a second, one at least; change the control rate")
    features, tasks, rows, columns, colours = {}, {}, [], {}, {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, _DataFiles(folder, data_files_size_in_mb * 2**20) as files:
        for number, episode in enumerate(episodes):
            where = f"{folder}: episode {number}"
            if not features:
                features = make_features(where, episode, list(state_names), list(action_names))
                schema = _schema(features)
            check_episode(where, episode, features)
            encoded = {CAMERA + camera: pool.map(_encode, frames) for camera, frames in episode.frames.items()}  # while this thread counts
            task = tasks.setdefault(episode.instruction, len(tasks))
            first = rows[-1]["dataset_to_index"] if rows else 0
            numbers = _columns(episode, number, first, task, fps)
            statistics = {name: column_statistics(values) for name, values in numbers.items()}
            for name, values in numbers.items():
                columns.setdefault(name, []).append(values)
            for camera, frames in episode.frames.items():
                sample = sample_frames(frames)
                counts = histogram(sample)
                statistics[CAMERA + camera] = image_statistics(counts, len(sample))
                total, seen = colours.get(CAMERA + camera, (0, 0))
                colours[CAMERA + camera] = (total + counts, seen + len(sample))
            chunk, file = files.write(_table(numbers, encoded, schema))
            rows.append(
                {
                    "episode_index": number,
                    "tasks": [episode.instruction],
                    "length": len(episode.states),
                    "data/chunk_index": chunk,
                    "data/file_index": file,
                    "dataset_from_index": first,
                    "dataset_to_index": first + len(episode.states),
                    **{f"stats/{name}/{key}": value for name in features for key, value in as_lists(statistics[name]).items()},
                    "meta/episodes/chunk_index": 0,
                    "meta/episodes/file_index": 0,
                    "worldenv_info": json.dumps(episode.info, allow_nan=False),
                }
            )
    if not rows:
        raise UserError(f"{folder}: no episodes to write, expected one at least; check what they are made from")
    statistics = {name: image_statistics(*colour) for name, colour in colours.items()}
    statistics |= {name: column_statistics(np.concatenate(parts)) for name, parts in columns.items()}
    _write_meta(folder, rows, tasks, {name: as_lists(statistics[name]) for name in features}, description)
    info = {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": robot_type,
        "total_episodes": len(rows),
        "total_frames": rows[-1]["dataset_to_index"],
        "total_tasks": len(tasks),
        "chunks_size": FILES_IN_CHUNK,
        "data_files_size_in_mb": data_files_size_in_mb,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(rows)}"},
        "data_path": DATA,
        "video_path": None,
        "features": features,
    }
    (folder / INFO).write_text(json.dumps(info, indent=4))


def _write_meta(folder: Path, rows: list[dict], tasks: dict[str, int], statistics: dict, description: dict) -> None:
    import pandas

    (folder / EPISODES).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / EPISODES, compression="snappy")
    pandas.DataFrame({"task_index": list(tasks.values())}, index=list(tasks)).to_parquet(folder / TASKS)
    (folder / STATISTICS).write_text(json.dumps(statistics, indent=4))
    (folder / DESCRIPTION).write_text(json.dumps({**description, "closing_row": CLOSING_ROW}, indent=4, allow_nan=False))


class _DataFiles:
    """The data files: one row group an episode, and a new file when the next episode would make the last one too large."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size  # bytes
        self.number, self.sink, self.writer = -1, None, None

    def write(self, table: pa.Table) -> tuple[int, int]:
        """Returns the (chunk, file) that the episode went into."""
        if self.writer is None or self.sink.tell() + table.nbytes > self.size:
            self.__exit__()
            self.number += 1
            chunk, file = divmod(self.number, FILES_IN_CHUNK)
            path = self.folder / DATA.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.sink = path.open("wb")
            self.writer = pq.ParquetWriter(self.sink, table.schema, compression="snappy")
        self.writer.write_table(table, row_group_size=len(table))
        return divmod(self.number, FILES_IN_CHUNK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        if self.writer is not None:
            self.writer.close()
            self.sink.close()


def _columns(episode: Episode, number: int, first: int, task: int, fps: int) -> dict[str, np.ndarray]:
    """Every column but the pictures, closing row included: {name: (T+1,) or (T+1, D)}."""
    rows = np.arange(len(episode.states))
    return {
        "observation.state": episode.states.astype(np.float32),
        "action": np.concatenate([episode.actions, np.zeros_like(episode.actions[:1])]).astype(np.float32),
        "next.success": np.append(episode.success[1:], episode.success[-1]).astype(bool),
        "next.done": rows >= len(rows) - 2,
        "timestamp": (rows / fps).astype(np.float32),
        "frame_index": rows,
        "episode_index": np.full(len(rows), number),
        "index": first + rows,
        "task_index": np.full(len(rows), task),
    }


def _schema(features: dict[str, dict]) -> pa.Schema:
    """The columns as `datasets` would write them: the "huggingface" metadata tells a reader which of them are pictures."""
    import datasets

    def column_type(feature: dict):
        if feature["dtype"] == "image":
            return datasets.Image()
        value = datasets.Value(feature["dtype"])
        return value if feature["shape"] == [1] else datasets.List(value, length=feature["shape"][0])

    return datasets.Features({name: column_type(feature) for name, feature in features.items()}).arrow_schema


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
