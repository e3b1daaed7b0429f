"""What is known of the episodes that a dataset holds so far: their rows of meta/episodes, their numbers and colours for exact statistics.

As soon as a data file is whole, its part of this is kept beside the files, so that a writer that was cut off goes on behind it.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic import read_json, write_json
from ..errors import UserError
from .layout import CAMERA, DATA, FILES_IN_CHUNK, VIDEO, Episode
from .statistics import as_lists, column_statistics, histogram, image_statistics, sample_frames

UNFINISHED = ".unfinished"  # a folder in the dataset's, until that is whole


class Written:
    def __init__(self, folder: Path, *, resume: bool):
        self.folder = folder
        self.features: dict[str, dict] = {}
        self.rows: list[dict] = []
        self.tasks: dict[str, int] = {}
        self.files = 0  # whole ones
        self._kept = 0  # rows of those
        self._columns: dict[str, list[np.ndarray]] = {}
        self._colours: dict[str, tuple[np.ndarray, int]] = {}
        self._file_colours: dict[str, tuple[np.ndarray, int]] = {}  # of the file that is being written
        while resume and self._remember(self.files):
            pass
        (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)

    def describe(self, episode: Episode, fps: float) -> tuple[dict[str, np.ndarray], dict, dict[str, tuple[np.ndarray, int]]]:
        """The next episode's columns but the pictures, its row of meta/episodes but the place, and its colours: what `add` takes."""
        number, task = len(self.rows), self.tasks.setdefault(episode.instruction, len(self.tasks))
        first = self.rows[-1]["dataset_to_index"] if self.rows else 0
        numbers = _columns(episode, number, first, task, fps)
        statistics = {name: column_statistics(values) for name, values in numbers.items()}
        samples = {CAMERA + camera: sample_frames(frames) for camera, frames in episode.frames.items()}
        colours = {name: (histogram(sample), len(sample)) for name, sample in samples.items()}
        statistics |= {name: image_statistics(*colour) for name, colour in colours.items()}
        row = {
            "episode_index": number,
            "tasks": [episode.instruction],
            "length": len(episode.states),
            "data/chunk_index": None,
            "data/file_index": None,
            "dataset_from_index": first,
            "dataset_to_index": first + len(episode.states),
            **{f"stats/{name}/{key}": value for name in self.features for key, value in as_lists(statistics[name]).items()},
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            "worldenv_info": json.dumps(episode.info, allow_nan=False),
        }
        return numbers, row, colours

    def add(self, numbers: dict, row: dict, colours: dict) -> None:
        """An episode that was written, its row completed by where."""
        self.rows.append(row)
        for name, values in numbers.items():
            self._columns.setdefault(name, []).append(values)
        for total in (self._colours, self._file_colours):
            _add_colours(total, colours)

    def keep_file(self) -> None:
        """Called once a data file is whole, before an episode of the next one is added."""
        colours = {name: [counts.tolist(), seen] for name, (counts, seen) in self._file_colours.items()}
        rows = self.rows[self._kept :]
        write_json(self._note(self.files), {"features": self.features, "tasks": self.tasks, "rows": rows, "colours": colours})
        self.files, self._kept, self._file_colours = self.files + 1, len(self.rows), {}

    def statistics(self) -> dict[str, dict]:
        """meta/stats.json: exact, over everything that was added."""
        found = {name: image_statistics(*colour) for name, colour in self._colours.items()}
        found |= {name: column_statistics(np.concatenate(parts)) for name, parts in self._columns.items()}
        return {name: as_lists(found[name]) for name in self.features}

    def _note(self, number: int) -> Path:
        return self.folder / UNFINISHED / f"file-{number:06d}.json"

    def _file(self, number: int) -> Path:
        chunk, file = divmod(number, FILES_IN_CHUNK)
        return self.folder / DATA.format(chunk_index=chunk, file_index=file)

    def _film(self, name: str, number: int) -> Path:
        chunk, file = divmod(number, FILES_IN_CHUNK)
        return self.folder / VIDEO.format(video_key=name, chunk_index=chunk, file_index=file)

    def _remember(self, number: int) -> bool:
        """Take in a data file that a call before has finished; False where there is none, or not all of it: it is written again then."""
        try:
            note = read_json(self._note(number))
            features, tasks, rows = dict(note["features"]), dict(note["tasks"]), list(note["rows"])
            names = [name for name, feature in features.items() if feature["dtype"] not in ("image", "video")]
            table = pq.read_table(self._file(number), columns=names)
            colours = {name: (np.array(counts), seen) for name, (counts, seen) in note["colours"].items()}
            filmed = [name for name, feature in features.items() if feature["dtype"] == "video"]
            whole = len(table) == sum(row["length"] for row in rows) and all(self._film(name, number).is_file() for name in filmed)
        except (UserError, OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError):
            return False
        if not whole:
            return False
        self.features, self.tasks = features, tasks
        self.rows += rows
        for name in names:
            values = table[name].to_numpy(zero_copy_only=False)
            self._columns.setdefault(name, []).append(np.stack(values) if values.dtype == object else values)
        _add_colours(self._colours, colours)
        self.files, self._kept = number + 1, len(self.rows)
        return True


def _add_colours(total: dict, more: dict) -> None:
    """Both {feature: ((3, 256) counts, pictures)}; the first one is changed."""
    for name, (counts, seen) in more.items():
        before, pictures = total.get(name, (0, 0))
        total[name] = (before + counts, pictures + seen)


def _columns(episode: Episode, number: int, first: int, task: int, fps: float) -> dict[str, np.ndarray]:
    """Every column but the pictures, closing row included: {name: (T+1,) or (T+1, D)}."""
    rows = np.arange(len(episode.states))
    last = np.zeros_like(episode.actions[:1]) if episode.last_action is None else episode.last_action[None]
    return {
        "observation.state": episode.states.astype(np.float32),
        "action": np.concatenate([episode.actions, last]).astype(np.float32),
        "next.success": np.append(episode.success[1:], episode.success[-1]).astype(bool),
        "next.done": rows >= len(rows) - 2,
        "timestamp": (rows / fps).astype(np.float32),
        "frame_index": rows,
        "episode_index": np.full(len(rows), number),
        "index": first + rows,
        "task_index": np.full(len(rows), task),
    }
