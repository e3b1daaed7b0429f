"""Which episodes a LeRobotDataset has, what they are to do, and where their rows and pictures should lie."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, NonNegativeInt

from ....errors import UserError
from ...layout import DATA, DESCRIPTION, INFO, TASKS, VIDEO
from ...pictures import AGAIN
from ...tables import LARGEST_JSON, placed, read_rows, read_tasks
from ..source import Listed, SourceConfig, validated
from .info import Info, facts_of
from .rows import Rows

OLD_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
LONGEST = 2000  # characters of an instruction


def _listed_texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class _Row(BaseModel):
    episode_index: NonNegativeInt
    tasks: Annotated[list[str], BeforeValidator(_listed_texts)] | None = None
    length: NonNegativeInt | None = None


class _Task(BaseModel):
    task_index: NonNegativeInt
    task: str


@dataclass(frozen=True)
class Film:
    """An episode in a camera's video."""

    path: Path
    begin: float = 0.0  # seconds from the file's beginning, as meta/episodes says
    end: float | None = None
    before: int = 0  # rows of the episodes before it in that file
    together: int = 0  # rows of all episodes in that file; 0 where the file is its own


@dataclass(frozen=True)
class Place:
    """Where an episode's rows and pictures should lie."""

    index: int
    table: Path | None
    length: int | None  # as declared
    films: dict[str, Film]  # by feature
    task: int | None = None  # the task_index that all its rows must have; None where that is not known before
    facts: dict = field(default_factory=dict)  # what its own writer knew of it: `Episode.info` of a dataset of ours


def places_of(path: Path, info: Info, filmed: Sequence[str], config: SourceConfig) -> tuple[list[tuple[Place, list[str] | None]], dict[int, str]]:
    """([(place, the instructions that are declared for it)], {task_index: instruction})."""
    if info.codebase_version == "v3.0":
        return _places(path, info, filmed, config)
    tasks_file = path / "meta/tasks.jsonl"
    tasks = {row.task_index: row.task for row in _lines(tasks_file, _Task)} if tasks_file.is_file() and config.instruction is None else {}
    found, lines = [], _lines(path / "meta/episodes.jsonl", _Row)
    _check_once(path / "meta/episodes.jsonl", [row.episode_index for row in lines])
    for row in lines:
        numbers = {"episode_chunk": row.episode_index // info.chunks_size, "episode_index": row.episode_index}
        table = placed(path, info.data_path, numbers, "data_path", OLD_DATA)
        films = {name: Film(placed(path, info.video_path or "", numbers | {"video_key": name}, "video_path", VIDEO)) for name in filmed}
        found.append((Place(row.episode_index, table, row.length, films), row.tasks))
    return found, tasks


def _places(path: Path, info: Info, filmed: Sequence[str], config: SourceConfig):
    """Version 3.0: many episodes to a file."""
    keys = ("chunk_index", "file_index", "from_timestamp")
    video = [f"videos/{name}/{key}" for name in filmed for key in (*keys, "to_timestamp")]
    rows = read_rows(path, (), ("tasks", "length", "data/chunk_index", "data/file_index", "worldenv_info", *video))
    if info.total_episodes not in (None, len(rows)) and not config.skip_bad:
        raise UserError(
            f"{path}/meta/episodes: {len(rows)} episodes, expected {info.total_episodes} as {INFO} says; {AGAIN}, or take those: --skip-bad"
        )
    declared = {row["episode_index"]: validated(_Row, row, f"{path}/meta/episodes: episode {row['episode_index']}") for row in rows}
    _check_once(path / "meta/episodes", [row["episode_index"] for row in rows])
    ours, complete = (path / DESCRIPTION).is_file(), all(row.tasks for row in declared.values())
    needed = config.instruction is None and ((path / TASKS).is_file() or ours or not complete)
    tasks = read_tasks(path) if needed else {}
    films = {name: _films(path, info, name, rows, keys) for name in filmed}
    found = []
    for row in rows:
        known = declared[row["episode_index"]]
        numbers = {"chunk_index": row.get("data/chunk_index"), "file_index": row.get("data/file_index")}
        table = placed(path, info.data_path, numbers, "data_path", DATA) if None not in numbers.values() else None
        mine = {name: of[known.episode_index] for name, of in films.items() if known.episode_index in of}
        facts = facts_of(row.get("worldenv_info"), f"{path}: episode {known.episode_index}")
        found.append((Place(known.episode_index, table, known.length, mine, facts=facts), known.tasks))
    return found, tasks


def _check_once(where: Path, numbers: Sequence[int]) -> None:
    if len(set(numbers)) != len(numbers):
        twice = max(numbers, key=numbers.count)
        raise UserError(f"{where}: episode_index {twice} occurs twice, expected one row for each episode; {AGAIN}")


def _films(path: Path, info: Info, name: str, rows: list[dict], keys: Sequence[str]) -> dict[int, Film]:
    """{episode: where it lies in a camera's videos}, with the rows that lie before it in the same file."""
    by_file: dict[Path, list[dict]] = {}
    for row in rows:
        if any(row.get(f"videos/{name}/{key}") is None for key in keys):
            continue
        numbers = {key: row[f"videos/{name}/{key}"] for key in ("chunk_index", "file_index")} | {"video_key": name}
        by_file.setdefault(placed(path, info.video_path or "", numbers, "video_path", VIDEO), []).append(row)
    found = {}
    for file, mine in by_file.items():
        mine = sorted(mine, key=lambda row: (row[f"videos/{name}/from_timestamp"], row["episode_index"]))
        lengths = [row.get("length") or 0 for row in mine]
        for number, row in enumerate(mine):
            begin, end = row[f"videos/{name}/from_timestamp"], row.get(f"videos/{name}/to_timestamp")
            found[row["episode_index"]] = Film(file, float(begin), end, sum(lengths[:number]), sum(lengths))
    return found


def _lines(path: Path, model):
    """A file of JSON lines."""
    if not path.is_file():
        raise UserError(f"{path}: missing; {AGAIN}")
    if path.stat().st_size > LARGEST_JSON:
        raise UserError(f"{path}: {path.stat().st_size / 2**20:,.0f} MiB, expected a line for each episode or task; do not trust this dataset")
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); {AGAIN}") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(validated(model, json.loads(line), f"{path}, line {number}"))
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); {AGAIN}") from error
    return found


def listed(path: Path, place: Place, declared: list[str] | None, tasks: dict[int, str], rows: Rows, config: SourceConfig) -> Listed:
    """An entry of the source, its instruction found where it is said: by the user, for the episode, or else by its rows' task_index."""
    name = f"episode {place.index}"
    texts = list(dict.fromkeys(" ".join(text.split()) for text in declared or []))
    problem, instruction, length = "", config.instruction or "", place.length
    task = None
    if config.instruction is None:
        if len(texts) == 1 and texts[0]:
            instruction = texts[0]
            known = [number for number, text in tasks.items() if " ".join(text.split()) == instruction]
            if tasks and not known and not rows.one_each:
                raise UserError(f"{path}: {name}: task {instruction[:60]!r} is not in {TASKS}; {AGAIN}")
            task = known[0] if len(known) == 1 else None
        else:
            instruction, problem = _by_rows(place, tasks, rows, texts)
        if len(instruction) > LONGEST:
            instruction, problem = "", f"an instruction of {len(instruction):,} characters, expected {LONGEST:,} at most; give one: --instruction"
    if length is None:
        length = len(rows.find(place.index, place.table)[1])
    return Listed(name, instruction, length, (Place(place.index, place.table, place.length, place.films, task, place.facts),), problem)


def _by_rows(place: Place, tasks: dict[int, str], rows: Rows, declared: list[str]) -> tuple[str, str]:
    """(instruction, why there is none)"""
    file, mine = rows.find(place.index, place.table)
    numbers = rows.tasks(file, mine)
    texts = list(dict.fromkeys(" ".join(tasks[number].split()) if number in tasks else "" for number in numbers))
    if len(texts) == 1 and texts[0]:
        return texts[0], ""
    several = [text for text in (texts if len(texts) > 1 else declared) if text]
    if len(several) > 1:
        shown = ", ".join(repr(text[:40]) for text in several[:3])
        out = "give one for all: --instruction, or leave such episodes out: --skip-bad, or --tasks with the instructions of the others"
        return "", f"{len(several)} instructions in one episode ({shown}), expected one; {out}"
    return "", ""
