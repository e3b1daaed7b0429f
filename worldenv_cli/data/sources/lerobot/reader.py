"""One episode of a LeRobotDataset: its numbers, its pictures, each row with the one that was recorded with it, and what became of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ....errors import UserError
from ...actions import ActionScale
from ...layout import UNKNOWN, Episode
from ...outcomes import flags, not_recorded, rewarded, so_far
from ...pictures import AGAIN, video_facts, video_frames
from ...tables import inside, read_numbers, read_pictures
from ..source import Listed
from .episodes import Film, Place
from .info import Feature, picture_size
from .rows import Rows, task_numbers

OFF_GRID = 0.25  # periods by which a timestamp may be away from its row's and still be of the stated rate
LARGEST_PICTURE = 64 * 2**20  # bytes of a file beside the table


@dataclass
class Reader:
    """What every episode of a set has in common."""

    root: Path
    rows: Rows
    state: dict[str, Feature]  # in the order in which they make up the state
    action: str
    action_feature: Feature
    cameras: dict[str, tuple[str, Feature]]  # {camera: (feature's name, feature)}
    fps: float | None
    success: str | None  # the column that the user names; else `outcome_column` of the file
    scale: ActionScale  # of a dataset of ours, by which its actions are stored

    def read(self, listed: Listed, cameras: Sequence[str], *, stored: bool = False, pictures: int | None = None) -> Episode:
        """`stored` leaves the actions of a dataset of ours in its own [-1, 1] instead of in recorded units; the first `pictures` will do."""
        place: Place = listed.key[0]
        file, mine = self.rows.find(place.index, place.table)
        where = f"{file}: {listed.name}"
        outcome = self.outcome_column(file)
        columns = [
            *self.state,
            self.action,
            "frame_index",
            "timestamp",
            *([outcome] if outcome else []),
            *(["task_index"] if place.task is not None else []),
        ]
        missing = [name for name in [*self.state, self.action] if name not in self.rows.columns(file)]
        if missing:
            raise UserError(f"{file}: no column {missing[0]!r} among {self.rows.columns(file)[:20]}; choose with --state and --action")
        table = self.rows.read(file, mine, columns)
        table, mine = _in_order(where, table, mine)
        if place.length is not None and len(mine) != place.length:
            raise UserError(
                f"{where}: {len(mine)} rows, expected {place.length} as meta/episodes says; leave the episode out, or correct its length there"
            )
        if len(mine) < 2:
            raise UserError(f"{where}: {len(mine)} row, expected two at least, the frames before and after an action; leave the episode out")
        self._check_task(where, table, place)
        states = [read_numbers(where, table[name], name, feature.shape) for name, feature in self.state.items()]
        actions = read_numbers(where, table[self.action], self.action, self.action_feature.shape)
        if not stored and not self.scale.is_identity:
            actions = self.scale.to_recorded(actions)
        info = dict(place.facts) or {"task": listed.instruction, "source": "lerobot"}
        if outcome is None or (info.get("outcome") == UNKNOWN and self.success is None):
            success, info["outcome"] = not_recorded(len(mine)), UNKNOWN
        else:
            info.pop("outcome", None)
            of = rewarded if outcome == "next.reward" and self.success is None else flags
            success = so_far(of(where, outcome, _values(where, outcome, table[outcome])), len(mine))
        return Episode(
            frames={camera: self._pictures(where, camera, place, file, mine, table, pictures) for camera in cameras},
            states=np.concatenate(states, 1),
            actions=actions[:-1],
            success=success,
            instruction=listed.instruction,
            info=info,
            last_action=actions[-1],
        )

    def outcome_column(self, file: Path) -> str | None:
        """Where this file says what was achieved: the column that the user names, or LeRobot's own ones."""
        present = self.rows.columns(file)
        if self.success is not None and self.success not in present:
            raise UserError(f"{file}: no column {self.success!r} for --success, found {present[:20]}; choose one of them, or give a CSV or JSON file")
        return self.success or next((name for name in ("next.success", "next.reward") if name in present), None)

    def _check_task(self, where: str, table: pa.Table, place: Place) -> None:
        numbers = set(task_numbers(table)) if place.task is not None else set()
        if numbers - {place.task}:
            shown = sorted(numbers, key=str)[:8]
            raise UserError(
                f"{where}: task_index {shown}, expected {place.task} in every row, as meta/episodes says; give one instruction for all: --instruction"
            )

    def _pictures(self, where: str, camera: str, place: Place, file: Path, mine: np.ndarray, table: pa.Table, most: int | None = None) -> np.ndarray:
        name, feature = self.cameras[camera]
        size = picture_size(feature)
        if feature.dtype == "image":
            mine = mine[:most]
            groups, begin = self.rows.groups(file, mine)
            order = np.argsort(mine)
            frames = read_pictures(f"{where}, {name}", file, name, mine[order], groups, begin, size, self._beside(where))
            return frames if (order == np.arange(len(order))).all() else frames[np.argsort(order)]
        film = place.films.get(name)
        if film is None:
            raise UserError(f"{where}, {name}: meta/episodes does not say where its video lies; leave the camera out with --cameras")
        return video_frames(film.path, self._numbers(where, film, table, len(mine))[:most], *size)

    def _beside(self, where: str):
        """Pictures that lie in files of the dataset, where rows hold their names."""

        def read(name: str) -> bytes:
            path = inside(self.root, name, f"{where}: a picture's path is {name[:80]!r}, expected a file inside the dataset")
            if not path.is_file() or path.stat().st_size > LARGEST_PICTURE:
                raise UserError(f"{path}: no picture there, though {where} names it; {AGAIN}")
            return path.read_bytes()

        return read

    def _numbers(self, where: str, film: Film, table: pa.Table, count: int) -> np.ndarray:
        """(count,) which frames of the video were recorded with the rows: the k-th with the k-th, from the episode's first one on.

        Timestamps say nothing of that where a recorder was late now and then, and sums of rounded durations drift; they are asked only where the
        video has other frames than rows.
        """
        facts = video_facts(film.path)
        if facts.frames == (film.together or count):
            return film.before + np.arange(count)
        if film.end is not None and abs((film.end - film.begin) * facts.rate - count) < 0.5:
            return round(film.begin * facts.rate) + np.arange(count)
        told = f"{film.path}: {facts.frames} frames for {film.together or count} rows"
        if self.fps is None or "timestamp" not in table.column_names:
            raise UserError(f"{told}, and no timestamps or fps that say which; leave the episode out, or the camera with --cameras")
        times = read_numbers(where, table["timestamp"], "timestamp", [1])[:, 0].astype(np.float64)
        late = np.flatnonzero(np.abs(times - times[0] - np.arange(count) / self.fps) > OFF_GRID / self.fps)
        if len(late):
            row = late[0]
            expected = f"expected {times[0] + row / self.fps:.3f} at {self.fps:g} Hz"
            raise UserError(
                f"{told}, and timestamp {times[row]:.3f} in row {row} of {where}, {expected}: which frame is whose is unknown; leave the episode out"
            )
        return np.round((film.begin + times) * facts.rate).astype(int)


def _in_order(where: str, table: pa.Table, mine: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """Rows by their frame_index; without one they have to lie in one piece."""
    if "frame_index" not in table.column_names:
        if np.any(np.diff(mine) != 1):
            raise UserError(f"{where}: its rows lie in several pieces, and no frame_index tells their order; {AGAIN}")
        return table, mine
    numbers = _values(where, "frame_index", table["frame_index"])
    order = np.argsort(numbers, kind="stable")
    jumps = np.flatnonzero(np.diff(numbers[order]) != 1)
    if len(jumps):
        before, after = numbers[order][jumps[0]], numbers[order][jumps[0] + 1]
        raise UserError(
            f"{where}: frame_index goes from {before} to {after}, expected every row once; rows are missing or double: leave the episode out"
        )
    return (table, mine) if (order == np.arange(len(order))).all() else (table.take(pa.array(order)), mine[order])


def _values(where: str, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """(rows,) of a column with one value a row, which may lie in lists of one."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        if (lengths != 1).any() or column.null_count:
            raise UserError(f"{where}, {name}: rows with {sorted(set(lengths.tolist()))[:4]} values, expected one a row")
        column = pc.list_flatten(column)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise UserError(f"{where}, {name}: nothing in row {row}, expected a value")
    return column.to_numpy(zero_copy_only=False)
