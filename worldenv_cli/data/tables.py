"""The files of a LeRobotDataset, one at a time: JSON, parquet columns, pictures in them, and where the next file lies.

They may come from anybody: nothing outside the folder is opened, and a picture is measured before it is decoded.
"""

import json
import re
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import UserError
from .layout import INFO, TASKS, check_finite
from .pictures import AGAIN, decoded


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


def read_tasks(folder: Path) -> dict[int, str]:
    """{task_index: instruction}. LeRobot keeps the instructions in the index of a pandas frame, with or without a name."""
    table = read_table(folder / TASKS, ["task_index"], ("task", "__index_level_0__"))
    if table.num_columns != 2:
        raise UserError(f"{folder / TASKS}: no instructions, expected them in the index; {AGAIN}")
    instructions = table.drop_columns("task_index").column(0)
    return dict(zip(table["task_index"].to_pylist(), instructions.to_pylist(), strict=True))


def read_rows(folder: Path, columns: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> list[dict]:
    """meta/episodes of version 3.0, a dict for each episode: which one, how long, its instructions, and the columns that are asked for."""
    paths = sorted(folder.glob("meta/episodes/chunk-*/file-*.parquet"))
    return [row for path in paths for row in read_table(path, ["episode_index", "length", "tasks", *columns], optional).to_pylist()]


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
