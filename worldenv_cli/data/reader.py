"""Read a LeRobotDataset v3.0 into memory, its own or a foreign one, and say what is wrong with it in terms of files and episodes.

The files may come from anybody: nothing outside the folder is opened, and a picture is measured before it is decoded.
"""

import itertools
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import UserError
from .layout import CAMERA, CODEBASE_VERSION, DATA, DESCRIPTION, INFO, TASKS, VIDEO, Episode, check_finite
from .pictures import AGAIN, decoded, video_frames


def read_dataset(folder: Path | str) -> list[Episode]:
    """All episodes, decoded, in memory. A foreign dataset will do as well as one of ours.

    The last row's action is dropped either way: in a closing row it is padding, in a foreign dataset nobody saw what it led to. Without a
    next.success column no frame counts as a success. Actions of foreign datasets come as they are, in [-1, 1] or not.
    """
    folder = Path(folder)
    info = _read_info(folder)
    tasks = read_tasks(folder)
    rows = read_rows(folder)
    if len(rows) != info["total_episodes"]:
        raise UserError(f"{folder}/meta/episodes: {len(rows)} episodes, expected {info['total_episodes']} as {INFO} says; {AGAIN}")
    episodes = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (chunk, file), group in itertools.groupby(rows, key=lambda row: (row["data/chunk_index"], row["data/file_index"])):
            path = placed(folder, info["data_path"], {"chunk_index": chunk, "file_index": file}, "data_path", DATA)
            episodes.extend(_read_file(folder, info, path, list(group), tasks, pool))
    return episodes


def read_description(folder: Path | str) -> dict:
    """What the writer of a dataset said about it (meta/worldenv.json), and what its closing rows are."""
    return read_json(Path(folder) / DESCRIPTION, "a dataset written by worldenv has one, any other has to be ingested first")


def _read_info(folder: Path) -> dict:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected a dataset; check the path")
    path = folder / INFO
    info = read_json(path, "every whole dataset has one; check the path, or write the dataset again if that was cut off")
    version = info.get("codebase_version")
    if version != CODEBASE_VERSION:
        raise UserError(f"{path}: codebase_version is {version!r}, expected {CODEBASE_VERSION!r}; convert the dataset with LeRobot's converter")
    missing = {"features", "data_path", "total_episodes"} - set(info)
    if missing:
        raise UserError(f"{path}: no {sorted(missing)}, expected what LeRobot writes; {AGAIN}")
    missing = {"observation.state", "action"} - set(info["features"])
    if missing:
        raise UserError(f"{path}: no feature {sorted(missing)} among {sorted(info['features'])}; rename the columns as LeRobot does")
    return info


def read_json(path: Path, advice: str) -> dict:
    if not path.is_file():
        raise UserError(f"{path}: missing; {advice}")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {AGAIN}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: {str(found)[:60]!r}, expected an object; {AGAIN}")
    return found


def read_table(path: Path, columns: list[str], optional: tuple[str, ...] = (), groups: list[int] | None = None) -> pa.Table:
    """Some columns of a file, of all its row groups or of some."""
    if not path.is_file():
        raise UserError(f"{path}: missing; {AGAIN}")
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            missing = sorted(set(columns) - set(present))
            if missing:
                raise UserError(f"{path}: no column {missing} among {present}; {AGAIN}")
            wanted = [*columns, *(column for column in optional if column in present)]
            return file.read(wanted) if groups is None else file.read_row_groups(groups, wanted)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file ({str(error).splitlines()[0]}); {AGAIN}") from error


def read_rows(folder: Path) -> list[dict]:
    """meta/episodes, a dict for each episode."""
    wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    paths = sorted(folder.glob("meta/episodes/chunk-*/file-*.parquet"))
    found = [row for path in paths for row in read_table(path, wanted, ("tasks", "worldenv_info")).to_pylist()]
    filmed = [row for path in paths for row in _video_places(path)]
    return [row | places for row, places in zip(found, filmed, strict=True)]


def _video_places(path: Path) -> list[dict]:
    """Where each episode of a meta/episodes file lies in its videos; an empty dict where it has none."""
    with pq.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if name.startswith("videos/")]
        return file.read(names).to_pylist() if names else [{}] * file.metadata.num_rows


def read_tasks(folder: Path) -> dict[int, str]:
    """{task_index: instruction}. LeRobot keeps the instructions in the index of a pandas frame, with or without a name."""
    table = read_table(folder / TASKS, ["task_index"], ("task", "__index_level_0__"))
    if table.num_columns != 2:
        raise UserError(f"{folder / TASKS}: no instructions, expected them in the index; {AGAIN}")
    instructions = table.drop_columns("task_index").column(0)
    return dict(zip(table["task_index"].to_pylist(), instructions.to_pylist(), strict=True))


def placed(folder: Path, template: str, values: dict[str, int | str], field: str, example: str) -> Path:
    """Where a file lies. Somebody else wrote the template, so it is neither given to `str.format` nor let out of the folder."""

    def fill(match: re.Match) -> str:
        value = values[match[1]]
        return value if isinstance(value, str) else str(value).zfill(int(match[2] or 0))

    name = re.sub(rf"\{{({'|'.join(values)})(?::0(\d)d)?\}}", fill, template)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.search(r"[{}\\:]", name):
        raise UserError(f"{folder / INFO}: {field} is {template!r}, expected a path inside the dataset like {example!r}; do not trust this dataset")
    return folder / path


def _read_file(folder: Path, info: dict, path: Path, rows: list[dict], tasks: dict[int, str], pool: ThreadPoolExecutor) -> Iterator[Episode]:
    """The episodes of one data file, decoded side by side."""
    features = info["features"]
    filmed = {name: feature for name, feature in features.items() if feature["dtype"] == "video"}
    stored = [name for name in features if name.startswith(CAMERA) and name not in filmed]
    wanted = [*stored, *(name for name in ("observation.state", "action", "next.success") if name in features)]
    table = read_table(path, [*wanted, "timestamp", "episode_index", "task_index"] if filmed else [*wanted, "episode_index", "task_index"])
    owner = table["episode_index"].to_numpy()

    def read(row: dict) -> Episode:
        where = f"{path}: episode {row['episode_index']}"
        mine = np.flatnonzero(owner == row["episode_index"])
        if len(mine) != row["length"] or np.any(np.diff(mine) != 1):
            raise UserError(f"{where}: {len(mine)} rows, expected {row['length']} in one piece; {AGAIN}")
        if len(mine) < 2:
            raise UserError(f"{where}: {len(mine)} row, expected two at least, the frames before and after an action; drop the episode")
        mine = table.slice(mine[0], len(mine))
        episode = _read_episode(where, mine, stored, features, tasks, json.loads(row.get("worldenv_info") or "{}"))
        for name, feature in filmed.items():
            episode.frames[name.removeprefix(CAMERA)] = _read_video(folder, info, row, name, feature, mine["timestamp"].to_numpy())
        return episode

    return pool.map(read, rows)


def _read_episode(where: str, table: pa.Table, cameras: list[str], features: dict, tasks: dict[int, str], facts: dict) -> Episode:
    numbers = set(table["task_index"].to_pylist())
    if len(numbers) != 1 or not numbers <= tasks.keys():
        raise UserError(f"{where}: task_index {sorted(numbers)}, expected one of {TASKS} for the whole episode; split it by instruction")
    states, actions = (read_numbers(where, table[name], name, features[name]["shape"]) for name in ("observation.state", "action"))
    success = np.zeros(len(table), dtype=bool)
    if "next.success" in features:
        success[1:] = np.logical_or.accumulate(table["next.success"].to_numpy()[:-1].astype(bool))
    frames = {name.removeprefix(CAMERA): read_frames(f"{where}, {name}", table[name], features[name]) for name in cameras}
    return Episode(frames, states, actions[:-1], success, tasks[numbers.pop()], facts)


def _read_video(folder: Path, info: dict, row: dict, name: str, feature: dict, timestamps: np.ndarray) -> np.ndarray:
    """(rows, H, W, 3) uint8."""
    numbers = {key: row.get(f"videos/{name}/{key}", 0) for key in ("chunk_index", "file_index")} | {"video_key": name}
    file = placed(folder, info.get("video_path") or "", numbers, "video_path", VIDEO)
    wanted = np.round((row.get(f"videos/{name}/from_timestamp", 0) + timestamps) * info["fps"]).astype(int)
    return video_frames(file, wanted, *picture_size(feature["shape"]), info["fps"])


def picture_size(shape: list[int]) -> tuple[int, int]:
    """(H, W) of a camera's shape; some datasets put the channel first."""
    return tuple(shape[:2]) if shape[2] == 3 else tuple(shape[1:])


def read_numbers(where: str, column: pa.ChunkedArray, name: str, shape: list[int]) -> np.ndarray:
    """(rows, D) float32. LeRobot stores a feature of shape (1,) as plain numbers, longer ones as lists."""
    flat = column if pa.types.is_primitive(column.type) else pc.list_flatten(column)
    if len(shape) != 1 or len(flat) != len(column) * shape[0]:
        raise UserError(f"{where}, {name}: {len(flat)} numbers in {len(column)} rows, expected {shape} a row as {INFO} says; {AGAIN}")
    values = flat.to_numpy().astype(np.float32).reshape(len(column), shape[0])
    check_finite(where, name, values)
    return values


def read_frames(where: str, column: pa.ChunkedArray, feature: dict) -> np.ndarray:
    """(rows, H, W, 3) uint8."""
    if not pa.types.is_struct(column.type) or len(feature["shape"]) != 3:
        raise UserError(f"{where}: a column of {column.type}, expected pictures as bytes and path; write the dataset again with dtype image")
    height, width = picture_size(feature["shape"])
    frames = np.empty((len(column), height, width, 3), dtype=np.uint8)
    for row, data in enumerate(pc.struct_field(column, "bytes").to_pylist()):
        frames[row] = decoded(data, height, width, f"{where}, row {row}")
    return frames
