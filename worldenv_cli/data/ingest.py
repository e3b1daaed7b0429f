"""Recorded data in, a dataset out: which episodes are taken, in which shape, and what is known of them."""

import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import Field

from .. import cards
from ..artifacts import fingerprint, is_current, make_provenance, package_versions, write_artifact
from ..atomic import staged
from ..config import Config
from ..destination import check_destination
from ..errors import UserError
from ..hub import downloaded, files_of, state_of
from ..progress import say, track
from .layout import INFO, Episode
from .sources import Listed, Source
from .tables import read_rows
from .writer import finished_episodes, write_dataset


class Selection(Config):
    """Which of the sources' episodes, and how their pictures are kept."""

    demos_per_task: int | None = Field(None, ge=1, description="drawn by seed; all of them where it is not given")
    tasks: tuple[str, ...] | None = Field(None, description="instructions that are wanted")
    cameras: dict[str, str] | None = Field(None, description="{name in the source: name in the dataset}; all as they are where it is not given")
    resize: tuple[int, int] | None = Field(None, description="(height, width) of every picture, in pixels")
    seed: int = 0
    video: bool = Field(False, description="keep pictures as H.264 video, a tenth of the size, instead of exactly")
    skip_bad: bool = Field(False, description="leave out episodes that cannot be read, and list them, instead of stopping")


def camera_names(text: str | None) -> dict[str, str] | None:
    """ "old=new,other" -> {"old": "new", "other": "other"}"""
    if not text:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    wrong = next((old for old, equals, new in pairs if not old or (equals and not new)), None)
    if wrong is not None:
        raise UserError(f"--cameras {text!r}: expected old=new, or names, separated by commas")
    return {old: new or old for old, _, new in pairs}


def picture_size(text: str | None) -> tuple[int, int] | None:
    """ "224x224" or "224" -> (height, width)"""
    if text is None:
        return None
    height, by, width = text.lower().partition("x")
    if not height.isdigit() or (by and not width.isdigit()) or not 8 <= int(height) <= 4096 or not 8 <= int(width or height) <= 4096:
        raise UserError(f"--resize {text!r}: expected height x width in pixels, 8 to 4096, such as 224x224")
    return int(height), int(width or height)


def ingest_sources(
    sources: Sequence[Source], out: Path, selection: Selection, *, dry_run: bool = False, force: bool = False, file_size_in_mb: int = 100
) -> None:
    """Write the chosen episodes of all sources as one dataset artifact; a call that was cut off goes on behind the last whole data file.

    Raises UserError where the sources' schemas differ, before anything is read.
    """
    check_destination(out, "dataset", [source.path for source in sources])
    first = sources[0]
    for other in sources[1:]:
        _same_schema(first, other, selection.resize is not None)
    chosen = choose_episodes(sources, selection)
    identities = [_identity(source) for source in sources]
    settings = {"selection": selection.model_dump(mode="json"), "sources": identities, "files": [state_of(source.path) for source in sources]}
    if not force and is_current(out, fingerprint(settings, {})):
        say(f"{out}: up to date")
        return
    if dry_run:
        say(f"{out}: would be made of {len(chosen)} episodes, {sum(listed.steps for _, listed in chosen):,} recorded steps")
        return
    cameras, skipped = _cameras(first, selection), []
    workshop = _workshop(out, fingerprint(settings, {}))
    done = {info["number"] for info in finished_episodes(workshop)}
    if done:
        say(f"{out}: {len(done)} of {len(chosen)} episodes are there already")
    description = describe(first, cameras, selection) | {"sources": identities, "skipped": skipped}
    write_dataset(
        workshop,
        read_ahead({number: one for number, one in enumerate(chosen) if number not in done}, cameras, selection, skipped),
        fps=first.control_hz,
        state_names=first.state_names,
        action_names=first.action_names,
        description=description,
        robot_type=first.robot,
        data_files_size_in_mb=file_size_in_mb,
        video=selection.video,
        resume=True,
    )
    rows = read_rows(workshop, ("worldenv_info",))
    card = cards.ingested(description, [(row["tasks"][0], row["length"] - 1) for row in rows])
    taken = [json.loads(row["worldenv_info"])["from"] for row in rows]
    config = {"source": first.format, "episodes": len(rows), "taken": taken, "skipped": skipped}
    with staged(out) as folder:
        for path in workshop.iterdir():
            if path.name != FINGERPRINT:
                path.rename(folder / path.name)
        write_artifact(folder, "dataset", config, None, make_provenance(settings, {}, selection.seed), card)
    shutil.rmtree(workshop)
    for line in skipped:
        say(f"left out: {line}")
    say(f"{out}: {len(rows)} episodes, {sum(row['length'] - 1 for row in rows):,} actions, {first.control_hz} Hz")


FINGERPRINT = "fingerprint"


def _workshop(out: Path, wanted: str) -> Path:
    """Where an unfinished dataset grows, beside the place where it will appear; that of other settings or sources is thrown away."""
    folder = out.with_name(f".{out.name}.unfinished")
    mark = folder / FINGERPRINT
    if folder.is_dir() and (not mark.is_file() or mark.read_text() != wanted or (folder / INFO).is_file()):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(wanted)
    return folder


def choose_episodes(sources: Sequence[Source], selection: Selection) -> list[tuple[Source, Listed]]:
    """In the sources' order. With `demos_per_task` each task's are drawn by seed, so that other tasks do not change the draw."""
    by_task: dict[str, list[tuple[Source, Listed]]] = {}
    for source in sources:
        for listed in source.episodes:
            if not listed.instruction.strip():
                raise UserError(f"{source.path}, {listed.name}: no instruction, or several; give one: --instruction 'lift the cube'")
            by_task.setdefault(listed.instruction, []).append((source, listed))
    wanted = by_task if selection.tasks is None else selection.tasks
    for task in wanted:
        if task not in by_task:
            raise UserError(f"--tasks {task!r}: not in the sources, which hold {sorted(by_task)[:8]}; copy the wording from `worldenv inspect`")
    chosen = []
    for task in wanted:
        found, count = by_task[task], selection.demos_per_task
        if count is not None and len(found) < count:
            raise UserError(f"task {task!r}: {len(found)} episodes, expected {count} for --demos-per-task; lower it or leave the task out")
        rows = range(len(found)) if count is None else sorted(_generator(selection.seed, task).permutation(len(found))[:count])
        chosen += [found[row] for row in rows]
    return chosen


def _generator(seed: int, task: str) -> np.random.Generator:
    return np.random.default_rng([seed, *task.encode()])


def read_ahead(chosen: dict[int, tuple[Source, Listed]], cameras: dict[str, str], selection: Selection, skipped: list[str]) -> Iterator[Episode]:
    """The chosen episodes, by number, in order, decoded by all cores a few ahead of the one that is being written: memory stays flat."""
    cores = os.cpu_count() or 1
    waiting: deque = deque()
    remaining = iter(chosen.items())
    with ThreadPoolExecutor(cores) as pool, track("ingest", total=len(chosen), unit="episodes") as bar:
        for number, one in itertools.islice(remaining, cores + 1):
            waiting.append(pool.submit(_prepared, number, *one, cameras, selection))
        while waiting:
            future = waiting.popleft()
            for number, one in itertools.islice(remaining, 1):
                waiting.append(pool.submit(_prepared, number, *one, cameras, selection))
            try:
                yield future.result()
            except UserError as error:
                if not selection.skip_bad:
                    for other in waiting:
                        other.cancel()
                    raise UserError(f"{error} (or leave such episodes out: --skip-bad)") from error
                skipped.append(str(error))
            bar.advance()


def _prepared(number: int, source: Source, listed: Listed, cameras: dict[str, str], selection: Selection) -> Episode:
    episode = source.read(listed, True)
    missing = sorted(set(cameras) - set(episode.frames))
    if missing:
        raise UserError(f"{source.path}, {listed.name}: no camera {missing[0]!r}, found {sorted(episode.frames)}; drop the episode")
    episode.frames = {new: resized(episode.frames[old], selection.resize) for old, new in cameras.items()}
    episode.info |= {"from": listed.name, "number": number}
    return episode


def resized(frames: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """(T, H, W, 3) uint8 -> the same with height and width of `size`, by averaging where it shrinks."""
    if size is None or frames.shape[1:3] == tuple(size):
        return frames
    return np.stack([np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BOX)) for frame in frames])


def _cameras(source: Source, selection: Selection) -> dict[str, str]:
    """{name in the source: name in the dataset}"""
    chosen = selection.cameras or {camera: camera for camera in source.cameras}
    missing = sorted(set(chosen) - set(source.cameras))
    if missing:
        raise UserError(f"{source.path}: no camera {missing[0]!r}, found {sorted(source.cameras)}; choose with --cameras")
    if len(set(chosen.values())) < len(chosen):
        raise UserError(f"--cameras: two cameras would be called {max(chosen.values(), key=list(chosen.values()).count)!r}; give each its own name")
    return chosen


def _sizes(source: Source) -> dict[str, list[int]]:
    return {camera: found["size"] for camera, found in sorted(source.cameras.items())}


SCHEMA: dict[str, Callable[[Source], object]] = {
    "control rate (Hz)": lambda source: source.control_hz,
    "state": lambda source: source.state_names,
    "action": lambda source: source.action_names,
    "action's unit": lambda source: source.action["unit"],
    "cameras": lambda source: sorted(source.cameras),
    "orientation": lambda source: {camera: found.get("orientation") for camera, found in sorted(source.cameras.items())},
    "picture sizes": _sizes,
    "camera poses": lambda source: {camera: found.get("extrinsics") for camera, found in sorted(source.cameras.items())},
    "robot": lambda source: source.robot,
}


def _same_schema(first: Source, other: Source, resized: bool) -> None:
    for field, of in SCHEMA.items():
        if of(first) != of(other) and not (resized and of is _sizes):
            raise UserError(f"{other.path}: {field} is {of(other)}, but {of(first)} in {first.path}; ingest them into two datasets")


def _identity(source: Source) -> dict:
    """What the record says of a source: enough to find it again, without this machine's folders."""
    found = {"format": source.format, "episodes": len(source.episodes), "success": source.success, "read_as": source.read_as}
    cached = downloaded(source.path)
    if cached:
        return {"name": cached[0], "commit": cached[1], **found}
    return {"name": source.path.name, "bytes": sum(path.stat().st_size for path in files_of(source.path)), **found}


def _scaled(camera: dict, size: tuple[int, int] | None) -> dict:
    """A camera's description once its pictures have another size: focal lengths and centre in pixels change with them."""
    if size is None or tuple(camera["size"]) == tuple(size):
        return camera
    scaled = camera | {"size": list(size), "recorded_size": camera["size"]}
    if "intrinsics" in camera:
        (height, width), matrix = camera["size"], np.array(camera["intrinsics"], dtype=float)
        scaled["intrinsics"] = (np.diag([size[1] / width, size[0] / height, 1]) @ matrix).tolist()
    return scaled


def describe(source: Source, cameras: dict[str, str], selection: Selection) -> dict:
    """meta/worldenv.json."""
    return {
        "source": source.format,
        "control_hz": source.control_hz,
        "action": {"names": source.action_names, **source.action},
        "state": {"names": source.state_names},
        "cameras": {new: _scaled(source.cameras[old], selection.resize) for old, new in cameras.items()},
        "success": source.success,
        "selection": selection.model_dump(mode="json"),
        "environment_steps": 0,
        "versions": package_versions(),
    }
