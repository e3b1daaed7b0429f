"""Which rows of which file an episode has: found by the `episode_index` that every row says, wherever meta/episodes says that they lie."""

import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from ....errors import UserError
from ...pictures import AGAIN
from ...tables import columns_of, inside, opened_table, read_table


def task_numbers(table: pa.Table) -> list[int]:
    """Every task_index of a table once; in some sets each lies in a list of its own."""
    values = table["task_index"].to_pylist() if "task_index" in table.column_names else []
    return list(dict.fromkeys(number for value in values for number in (value if isinstance(value, list) else [value])))


class Rows:
    """The data files of a set."""

    def __init__(self, root: Path, one_each: bool):
        self.root = root
        self.one_each = one_each  # versions 2.x: a file for each episode, which need not say whose it is
        self.layout = lru_cache(maxsize=16)(self._layout)
        self.columns = lru_cache(maxsize=None)(columns_of)
        self._scanned: dict[int, list[Path]] | None = None
        self._lock = threading.Lock()

    def find(self, index: int, hint: Path | None) -> tuple[Path, np.ndarray]:
        """(file, numbers of the episode's rows in it, ascending): in the file where it should be, else in any other."""
        where = f"{self.root}: episode {index}"
        if hint is not None and hint.is_file():
            rows = np.flatnonzero(self.layout(hint)[0] == index) if not self.says_nothing(hint) else np.arange(self.layout(hint)[1][-1])
            if len(rows):
                return hint, rows
        files = self._scan().get(index, [])
        if not files:
            missing = f"{hint} is missing" if hint is not None and not hint.is_file() else "no data file holds rows of it"
            raise UserError(f"{where}: {missing}, and no other file holds it; {AGAIN}")
        if len(files) > 1:
            raise UserError(f"{where}: rows in {len(files)} files ({files[0].name}, {files[1].name}), expected one; {AGAIN}")
        return files[0], np.flatnonzero(self.layout(files[0])[0] == index)

    def groups(self, file: Path, rows: np.ndarray) -> tuple[range, int]:
        """(the row groups that hold these rows, the number of the first row in them)"""
        ends = self.layout(file)[1]
        first, last = np.searchsorted(ends, [rows[0], rows[-1]], side="right")
        return range(first, last + 1), int(ends[first - 1]) if first else 0

    def read(self, file: Path, rows: np.ndarray, columns: list[str]) -> pa.Table:
        """Those columns of those rows; columns that the file does not have are left out."""
        groups, begin = self.groups(file, rows)
        present = [column for column in dict.fromkeys(columns) if column in self.columns(file)]
        return read_table(file, present, groups=list(groups)).take(pa.array(rows - begin)) if present else pa.table({})

    def tasks(self, file: Path, rows: np.ndarray) -> list[int]:
        """The task_index of those rows, each once; none where the file does not say."""
        return task_numbers(self.read(file, rows, ["task_index"]))

    def says_nothing(self, file: Path) -> bool:
        return self.one_each and "episode_index" not in self.columns(file)

    def _layout(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """(the episode of every row, where each row group ends): read once for the many episodes of a file."""
        with opened_table(file) as table:
            counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        if self.says_nothing(file):
            return np.zeros(0, int), np.cumsum(counts or [0])
        owners = read_table(file, ["episode_index"])["episode_index"]
        if pa.types.is_list(owners.type) or pa.types.is_large_list(owners.type) or pa.types.is_fixed_size_list(owners.type):
            owners = owners.combine_chunks().flatten()
        if owners.null_count or not pa.types.is_integer(owners.type) or len(owners) != sum(counts):
            raise UserError(f"{file}: episode_index is {owners.type}, expected a whole number in every row; {AGAIN}")
        return owners.to_numpy(), np.cumsum(counts or [0])

    def _scan(self) -> dict[int, list[Path]]:
        with self._lock:
            if self._scanned is None:
                self._scanned = {}
                for path in sorted(self.root.glob("data/**/*.parquet")):
                    if path.name.startswith("."):
                        continue
                    inside(self.root, path.relative_to(self.root).as_posix(), f"{path}: expected a file of the dataset")
                    try:
                        owners = np.unique(self.layout(path)[0])
                    except UserError:  # it is named where an episode of it is wanted
                        continue
                    for index in owners.tolist():
                        self._scanned.setdefault(index, []).append(path)
            return self._scanned
