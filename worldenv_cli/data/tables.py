"""The files of a LeRobotDataset, one at a time: JSON, parquet columns, pictures in them, and where the next file lies.

They may come from anybody: nothing outside the folder is opened, and what a file claims to hold is compared with its size before it is read.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import UserError
from .layout import INFO, TASKS, check_finite
from .pictures import AGAIN, LEAVE_OUT, decoded, room_for

LARGEST_JSON = 256 * 2**20  # bytes
ROWS_A_BYTE = 8  # no table of recorded numbers packs more rows into a byte of its file
PACKED = 1000  # nor more bytes of numbers, from LARGE_TABLE on
LARGE_TABLE = 2**30  # bytes, unpacked
PICTURES_AT_ONCE = 16
MOST_EPISODES = 1_000_000  # of a set, and as many tasks


def read_json(path: Path, advice: str) -> dict:
    if not path.is_file():
        raise UserError(f"{path}: missing; {advice}")
    if path.stat().st_size > LARGEST_JSON:
        raise UserError(f"{path}: {path.stat().st_size / 2**20:,.0f} MiB of JSON, expected a description; do not trust this dataset")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {AGAIN}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: {str(found)[:60]!r}, expected an object; {AGAIN}")
    return found


@contextmanager
def opened_table(path: Path) -> Iterator[pq.ParquetFile]:
    """A parquet file whose claims fit its size. What is wrong with it while it is read is told in one line."""
    if not path.is_file():
        raise UserError(f"{path}: missing; {AGAIN}")
    try:
        with pq.ParquetFile(path) as file:
            size, rows = path.stat().st_size, file.metadata.num_rows
            groups = range(file.metadata.num_row_groups)
            unpacked = sum(file.metadata.row_group(group).total_byte_size for group in groups)
            counted = sum(file.metadata.row_group(group).num_rows for group in groups)
            if rows != counted or rows > ROWS_A_BYTE * size or unpacked > max(PACKED * size, LARGE_TABLE):
                raise UserError(f"{path}: {rows:,} rows, {unpacked:,} bytes unpacked, in a file of {size:,} bytes; do not trust this dataset")
            yield file
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file ({str(error).splitlines()[0]}); {AGAIN}") from error


def columns_of(path: Path) -> list[str]:
    with opened_table(path) as file:
        return file.schema_arrow.names


def read_table(path: Path, columns: list[str], optional: tuple[str, ...] = (), groups: list[int] | None = None, most: int | None = None) -> pa.Table:
    """Some columns of a file, of all its row groups or of some; `most` rows."""
    with opened_table(path) as file:
        if most is not None and file.metadata.num_rows > most:
            raise UserError(f"{path}: {file.metadata.num_rows:,} rows, expected {most:,} at most; do not trust this dataset")
        present = file.schema_arrow.names
        missing = sorted(set(columns) - set(present))
        if missing:
            raise UserError(
                f"{path}: no column {missing} among {present[:20]}; expected it there, or choose others with --state, --action and --cameras"
            )
        wanted = [*columns, *(column for column in optional if column in present and column not in columns)]
        return _plain(file.read(wanted) if groups is None else file.read_row_groups(groups, wanted))


def _plain(table: pa.Table) -> pa.Table:
    """Columns that were stored as categories, as what those stand for."""
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(number, field.name, table[field.name].cast(field.type.value_type))
    return table


def read_tasks(folder: Path) -> dict[int, str]:
    """{task_index: instruction}. LeRobot keeps the instructions in the index of a pandas frame, with or without a name."""
    table = read_table(folder / TASKS, ["task_index"], ("task", "__index_level_0__"), most=MOST_EPISODES)
    name = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
    if name is None:
        raise UserError(f"{folder / TASKS}: no instructions, expected them in the index; {AGAIN}")
    pairs = zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True)
    return {number: "" if text is None else str(text) for number, text in pairs}


def read_rows(folder: Path, columns: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> list[dict]:
    """meta/episodes of version 3.0, a dict for each episode: which one, and those of the columns that are asked for."""
    paths = sorted(path for path in folder.glob("meta/episodes/*/*.parquet") if not path.name.startswith("."))
    return [row for path in paths for row in read_table(path, ["episode_index", *columns], optional, most=MOST_EPISODES).to_pylist()]


def placed(folder: Path, template: str, values: dict[str, int | str], field: str, example: str) -> Path:
    """Where a file lies. Somebody else wrote the template, so it is neither given to `str.format` nor let out of the folder."""

    def fill(match: re.Match) -> str:
        value = values[match[1]]
        return value if isinstance(value, str) else str(value).zfill(int(match[2] or 0))

    name = re.sub(rf"\{{({'|'.join(values)})(?::0(\d)d)?\}}", fill, template)
    if re.search(r"[{}\\:\0]", name):
        raise UserError(f"{folder / INFO}: {field} is {template!r}, expected a path inside the dataset like {example!r}; do not trust this dataset")
    return inside(folder, name, f"{folder / INFO}: {field} is {template!r}, expected a path inside the dataset like {example!r}")


def inside(folder: Path, name: str, told: str) -> Path:
    """A file of the folder by a name that somebody else wrote. Links may lead to other files of the folder, or into the Hub's cache of it."""
    path = PurePosixPath(name)
    found = folder / path
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UserError(f"{told}; do not trust this dataset")
    real, root = found.resolve(), folder.resolve()
    snapshots = next((parent for parent in folder.absolute().parents if parent.name == "snapshots"), None)
    cached = snapshots is not None and real.is_relative_to((snapshots.parent / "blobs").resolve())
    if not real.is_relative_to(root) and not cached:
        raise UserError(f"{told}, but {found} is a link that leads out of it; put the file itself there")
    return found


def read_numbers(where: str, column: pa.ChunkedArray, name: str, shape: list[int]) -> np.ndarray:
    """(rows, D) float32. LeRobot stores a feature of shape (1,) as plain numbers, longer ones as lists; every row must have D of them."""
    size, listed = shape[0] if len(shape) == 1 else None, pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    fixed = pa.types.is_fixed_size_list(column.type)
    value_type = column.type.value_type if listed or fixed else column.type
    if size is None or not (pa.types.is_integer(value_type) or pa.types.is_floating(value_type) or pa.types.is_boolean(value_type)):
        raise UserError(f"{where}, {name}: {column.type} of shape {shape}, expected a row of numbers; choose with --state and --action")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy() if listed or fixed else np.ones(len(column), int)
    lengths = np.where(column.is_null().to_numpy(), 0, lengths)
    wrong = np.flatnonzero(lengths != size)
    if len(wrong):
        raise UserError(f"{where}, {name}: {lengths[wrong[0]]} numbers in row {wrong[0]}, expected {shape} a row as {INFO} says")
    flat = pc.list_flatten(column) if listed or fixed else column
    with np.errstate(over="ignore"):
        values = flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), size)
    check_finite(where, name, values)
    return values


def read_pictures(
    where: str, path: Path, name: str, rows: np.ndarray, groups: range, begin: int, size: tuple[int, int], beside: Callable
) -> np.ndarray:
    """(len(rows), H, W, 3) uint8 of a column of pictures, a few of them in memory as they lie in the file.

    `rows` are numbers of rows in the file, ascending; `groups` the row groups that hold them, of which the first one begins at row `begin`.
    `beside(name)` gives the bytes of a picture that lies in a file of the dataset.
    """
    frames, done = room_for(where, len(rows), *size), 0
    with opened_table(path) as file:
        for batch in file.iter_batches(PICTURES_AT_ONCE, row_groups=list(groups), columns=[name]):
            mine = rows[(rows >= begin) & (rows < begin + len(batch))] - begin
            for cell in _cells(where, batch.column(0).take(pa.array(mine))):
                data, beside_name = cell.get("bytes"), cell.get("path")
                data = data if data or not beside_name else beside(beside_name)
                frames[done] = decoded(data, *size, f"{where}, row {done}")
                done += 1
            begin += len(batch)
            if done == len(rows):
                return frames
    raise UserError(f"{where}: {done} pictures, expected {len(rows)}; {AGAIN}")


def _cells(where: str, column: pa.Array) -> list[dict]:
    if pa.types.is_struct(column.type):
        return [cell or {} for cell in column.to_pylist()]
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return [{"bytes": data} for data in column.to_pylist()]
    if pa.types.is_string(column.type):
        return [{"path": name} for name in column.to_pylist()]
    raise UserError(f"{where}: a column of {column.type}, expected pictures as bytes and path; {LEAVE_OUT}, or write the dataset with dtype image")
