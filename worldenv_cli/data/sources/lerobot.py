"""LeRobotDatasets of versions 2.0, 2.1 and 3.0, pictures in the tables or in videos.

A row is an observation and the action that was taken on it; what the last action of an episode led to was not kept, so it is left out.
Names, cameras and their sizes come from meta/info.json. Statistics are not read: they are computed again, exactly.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, StrictInt

from ...errors import UserError
from ..layout import CAMERA, DATA, DESCRIPTION, INFO, VIDEO, Episode
from ..pictures import AGAIN, video_frames
from ..tables import picture_size, placed, read_frames, read_json, read_numbers, read_rows, read_table, read_tasks
from .source import ASSUMED, RECORDED, Listed, Source, SourceConfig, check_picture, so_far, success_at_the_end, unit_range, validated

VERSIONS = ("v2.0", "v2.1", "v3.0")
UNKNOWN = "unknown: the source does not record it"
OLD_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"


class _Feature(BaseModel):
    dtype: str
    shape: list[PositiveInt] = Field(min_length=1, max_length=5)
    names: Any = None


class _Info(BaseModel):
    """What is needed of meta/info.json."""

    codebase_version: str
    fps: StrictInt = Field(ge=1)
    features: dict[str, _Feature]
    data_path: str
    video_path: str | None = None
    robot_type: str | None = None
    chunks_size: PositiveInt = 1000
    total_episodes: NonNegativeInt | None = None


class _Row(BaseModel):
    episode_index: NonNegativeInt
    tasks: list[str]
    length: NonNegativeInt


@dataclass(frozen=True)
class _Place:
    """Where an episode's rows and pictures lie."""

    index: int
    table: Path
    videos: dict[str, tuple[Path, float]]  # {feature: (file, seconds from its beginning)}
    task: int | None = None  # the task_index of all its rows; None where they are of several, or where another version keeps no list
    facts: dict = field(default_factory=dict)  # what its own writer knew of it: `Episode.info` of a dataset of ours


def open_lerobot(path: Path, config: SourceConfig) -> Source:
    info = validated(_Info, read_json(path / INFO, "expected a LeRobotDataset; check the path"), str(path / INFO))
    if info.codebase_version not in VERSIONS:
        raise UserError(
            f"{path / INFO}: codebase_version is {info.codebase_version!r}, expected one of {', '.join(VERSIONS)}; use LeRobot's converter"
        )
    features = {name: feature.model_dump() for name, feature in info.features.items()}
    state, action = list(config.state or ("observation.state",)), config.action or "action"
    absent = [name for name in [*state, action] if name not in features]
    if absent:
        raise UserError(f"{path / INFO}: no feature {absent[0]!r}, found {sorted(features)}; choose with --state and --action")
    cameras = {name: feature for name, feature in features.items() if feature["dtype"] in ("image", "video")}
    for name, feature in cameras.items():
        check_picture(feature["shape"], f"{path / INFO}: {name}", (0, 2))
    listed = (_listed if info.codebase_version == "v3.0" else _listed_old)(path, info, cameras, config)
    if not listed:
        raise UserError(f"{path}: no episodes, expected one at least; {AGAIN}")
    layout = lru_cache(maxsize=16)(_layout)
    described = read_json(path / DESCRIPTION, "") if (path / DESCRIPTION).is_file() else {}
    low, high = _range(listed, action, features[action])
    scaled = bool((low < -1 - 1e-6).any() or (high > 1 + 1e-6).any())
    centre, half = ((low + high) / 2, np.maximum((high - low) / 2, 1e-6)) if scaled else (np.zeros_like(low), np.ones_like(high))
    meaning = described.get("action", {}) if action == "action" else {}
    known = described.get("cameras", {})
    return Source(
        format=f"lerobot {info.codebase_version}",
        path=path,
        control_hz=info.fps,
        robot=info.robot_type or "unknown",
        state_names=[name for key in state for name in _names(key, features[key])],
        action_names=_names(action, features[action]),
        action={"meaning": "as recorded by the source", "unit": None, **meaning, "range": [-1, 1]}
        | ({"recorded": "recorded = offset + unit * action", "offset": centre.tolist(), "unit": half.tolist()} if scaled else {}),
        cameras={
            name.removeprefix(CAMERA): {
                "orientation": UNKNOWN,
                **known.get(name.removeprefix(CAMERA), {}),
                "size": list(picture_size(feature["shape"])),
            }
            for name, feature in cameras.items()
        },
        success=RECORDED if "next.success" in features else ASSUMED,
        episodes=listed,
        read=lambda listed, pictures: _read(listed, pictures, layout, features, cameras, state, action, centre, half, info.fps),
    )


def _names(key: str, feature: dict) -> list[str]:
    """A feature's own names, where it has one for each number; older sets keep them in a dict by kind."""
    names, size = feature.get("names"), int(np.prod(feature["shape"]))
    names = next(iter(names.values()), None) if isinstance(names, dict) else names
    return [str(name) for name in names] if isinstance(names, list) and len(names) == size else [f"{key}_{i}" for i in range(size)]


def _listed(path: Path, info: _Info, cameras: dict, config: SourceConfig) -> list[Listed]:
    """Version 3.0: many episodes to a file, their places in meta/episodes."""
    tasks = {instruction: number for number, instruction in read_tasks(path).items()}
    videos = [name for name, feature in cameras.items() if feature["dtype"] == "video"]
    filmed = [f"videos/{name}/{key}" for name in videos for key in ("chunk_index", "file_index", "from_timestamp")]
    rows = read_rows(path, ("data/chunk_index", "data/file_index", *filmed), ("worldenv_info",))
    if info.total_episodes not in (None, len(rows)):
        raise UserError(f"{path}/meta/episodes: {len(rows)} episodes, expected {info.total_episodes} as {INFO} says; {AGAIN}")
    found = []
    for row in rows:
        numbers = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        table = placed(path, info.data_path, numbers, "data_path", DATA)
        places = {}
        for name in videos:
            numbers = {key: row[f"videos/{name}/{key}"] for key in ("chunk_index", "file_index")} | {"video_key": name}
            places[name] = placed(path, info.video_path or "", numbers, "video_path", VIDEO), row[f"videos/{name}/from_timestamp"]
        unknown = sorted(set(row["tasks"]) - set(tasks))
        where = f"{path}: episode {row['episode_index']}"
        if unknown:
            raise UserError(f"{where}: task {unknown[0]!r} is not in meta/tasks.parquet; {AGAIN}")
        task = tasks[row["tasks"][0]] if len(row["tasks"]) == 1 else None
        found.append(_entry(row, config, _Place(row["episode_index"], table, places, task, _facts(row.get("worldenv_info"), where))))
    return found


def _facts(text: str | None, where: str) -> dict:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise UserError(f"{where}, worldenv_info: not JSON ({error}); {AGAIN}") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}, worldenv_info: {text[:60]!r}, expected an object; {AGAIN}")
    return found


def _listed_old(path: Path, info: _Info, cameras: dict, config: SourceConfig) -> list[Listed]:
    """Versions 2.0 and 2.1: a file for each episode and camera."""
    found, size = [], info.chunks_size
    for row in _read_lines(path / "meta/episodes.jsonl"):
        index = row["episode_index"]
        numbers = {"episode_chunk": index // size, "episode_index": index}
        table = placed(path, info.data_path, numbers, "data_path", OLD_DATA)
        videos = {
            name: (placed(path, info.video_path or "", numbers | {"video_key": name}, "video_path", VIDEO), 0.0)
            for name, feature in cameras.items()
            if feature["dtype"] == "video"
        }
        found.append(_entry(row, config, _Place(index, table, videos)))
    return found


def _entry(row: dict, config: SourceConfig, place: _Place) -> Listed:
    instruction = config.instruction or (row["tasks"][0] if len(row["tasks"]) == 1 else "")
    return Listed(f"episode {row['episode_index']}", instruction, row["length"], (place,))


def _read_lines(path: Path) -> list[dict]:
    """meta/episodes.jsonl"""
    if not path.is_file():
        raise UserError(f"{path}: missing; {AGAIN}")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); {AGAIN}") from error
        rows.append(validated(_Row, found, f"{path}, line {number}").model_dump())
    return rows


def _range(listed: list[Listed], action: str, feature: dict) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest recorded action of each dimension, one file in memory at a time."""
    lows, highs = [], []
    for table in sorted({one.key[0].table for one in listed}):
        values = read_numbers(str(table), read_table(table, [action])[action], action, feature["shape"])
        lows.append(values.min(0))
        highs.append(values.max(0))
    return np.min(lows, 0).astype(np.float64), np.max(highs, 0).astype(np.float64)


def _read(
    listed: Listed, pictures: bool, layout: Callable, features: dict, cameras: dict, state: list[str], action: str, centre, half, fps: int
) -> Episode:
    place: _Place = listed.key[0]
    where = f"{place.table}: episode {place.index}"
    optional = [name for name in ("next.success",) if name in features] + (["task_index"] if place.task is not None else [])
    cameras = cameras if pictures else {}
    stored = [name for name, feature in cameras.items() if feature["dtype"] == "image"]
    table = _rows(place, [*state, action, *stored, "episode_index", "timestamp", *optional], listed.steps, where, layout)
    if len(table) < 2:
        raise UserError(f"{where}: {len(table)} row, expected two at least, the frames before and after an action; drop the episode")
    numbers = set(table["task_index"].to_pylist()) if place.task is not None else set()
    if numbers - {place.task}:
        raise UserError(f"{where}: task_index {sorted(numbers)}, expected {place.task} in every row, as meta/episodes says; {AGAIN}")
    states = [read_numbers(where, table[name], name, features[name]["shape"]) for name in state]
    actions = read_numbers(where, table[action], action, features[action]["shape"])[:-1]
    frames = {}
    for name, feature in cameras.items():
        if name in place.videos:
            file, begin = place.videos[name]
            numbers = np.round((begin + table["timestamp"].to_numpy()) * fps).astype(int)
            frames[name.removeprefix(CAMERA)] = video_frames(file, numbers, *picture_size(feature["shape"]), fps)
        else:
            frames[name.removeprefix(CAMERA)] = read_frames(f"{where}, {name}", table[name], feature)
    success = success_at_the_end(len(table))
    if "next.success" in features:
        success = so_far(table["next.success"].to_numpy()[:-1])
    return Episode(
        frames=frames,
        states=np.concatenate(states, 1),
        actions=unit_range(where, (actions - centre) / half),
        success=success,
        instruction=listed.instruction,
        info=place.facts or {"task": listed.instruction, "source": "lerobot"},
    )


def _rows(place: _Place, columns: list[str], expected: int, where: str, layout: Callable):
    """The rows of one episode: files of this version hold a row group for each, but nobody has to."""
    owners, ends = layout(place.table)
    mine = np.flatnonzero(owners == place.index)
    if len(mine) != expected or np.any(np.diff(mine) != 1):
        raise UserError(f"{where}: {len(mine)} rows, expected {expected} in one piece; {AGAIN}")
    first, last = np.searchsorted(ends, [mine[0], mine[-1]], side="right")
    table = read_table(place.table, columns, groups=list(range(first, last + 1)))
    return table.slice(mine[0] - (ends[first - 1] if first else 0), len(mine))


def _layout(table: Path) -> tuple[np.ndarray, np.ndarray]:
    """(the episode of every row, where each row group ends): read once by a source for the many episodes of a file."""
    owners = read_table(table, ["episode_index"])["episode_index"].to_numpy()
    with pq.ParquetFile(table) as file:
        return owners, np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
