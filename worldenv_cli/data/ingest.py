"""Recorded data in, a dataset out: the chosen episodes of all sources, their actions in one scale, and what is known of them."""

import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .. import cards
from ..artifacts import fingerprint, is_current, make_provenance, write_artifact
from ..atomic import disk_full_told, staged
from ..destination import check_destination
from ..errors import UserError
from ..hub import state_of
from ..locks import locked
from ..progress import say, track
from .actions import ActionScale
from .description import closing_row, describe, identity, outcomes_of, told, without_folders
from .layout import DESCRIPTION, INFO, Episode
from .selection import Selection, check_same, choose_cameras, choose_episodes, common, instruction_of
from .sources import Listed, Source
from .survey import Survey, closing_action, common_scale, survey
from .tables import read_json, read_rows
from .writer import UNFINISHED, finished_episodes, write_dataset

FINGERPRINT = "fingerprint"


def ingest_sources(
    sources: Sequence[Source],
    out: Path,
    selection: Selection,
    *,
    unopened: Sequence[str] = (),
    dry_run: bool = False,
    force: bool = False,
    file_size_in_mb: int = 100,
) -> None:
    """Write the chosen episodes of all sources as one dataset artifact; a call that was cut off goes on behind the last whole data file.

    `unopened` are sources that `skip_bad` has left out already, with the reasons. Raises UserError where the sources do not fit together, before
    anything is written.
    """
    check_destination(out, "dataset", [source.path for source in sources])
    plan = _planned(sources, selection, unopened)
    settings = {"selection": selection.model_dump(mode="json"), "sources": plan.identities, "files": [state_of(source.path) for source in sources]}
    made_from = fingerprint(settings, {})
    if dry_run:
        current = not force and is_current(out, made_from)
        steps = sum(listed.steps for _, listed in plan.chosen)
        say(f"{out}: up to date" if current else f"{out}: would be made of {len(plan.chosen)} episodes, {steps:,} recorded steps")
        return
    with locked(out, "dataset"), disk_full_told(out):
        if not force and is_current(out, made_from):
            shutil.rmtree(_unfinished(out), ignore_errors=True)
            say(f"{out}: up to date")
            return
        found = None if _is_whole(out, made_from) else survey(plan.chosen, skip_bad=selection.skip_bad)
        workshop = _workshop(out, made_from)
        try:
            if found is not None:
                _write(workshop, out, plan, found, file_size_in_mb)
            _publish(workshop, out, settings, selection)
        except UserError:
            if not finished_episodes(workshop) and not (workshop / INFO).is_file():
                shutil.rmtree(workshop)
            raise


@dataclass
class _Plan:
    """What is to become a dataset, before its episodes are read."""

    selection: Selection
    cameras: dict[str, str]  # {name in the sources: name in the dataset}
    chosen: list[tuple[Source, Listed]]
    identities: list[dict]  # of the sources, for the record
    skipped: list[str]  # what is left out, completed by what is found out on the way
    paths: list[Path]  # of the sources, which no file of the dataset names


def _planned(sources: Sequence[Source], selection: Selection, unopened: Sequence[str]) -> _Plan:
    real = [source.path.resolve() for source in sources]
    twice = next((path for path in real if real.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"{sources[real.index(twice)].path}: given twice, expected every source once; leave one of them out")
    for source in sources:
        if source.control_hz is None:
            raise UserError(f"{source.path}: the source does not record its control rate; tell it: --control-hz 20, say")
    cameras = [choose_cameras(source, selection) for source in sources][0]
    check_same(sources, list(cameras), resized=selection.resize is not None)
    skipped = [*unopened, *(line for source in sources for line in source.unusable)]
    chosen = choose_episodes(sources, selection, skipped)
    if not chosen:
        listed = sum(len(source.episodes) for source in sources)
        raise UserError(f"{sources[0].path}: none of {listed} episodes can be taken: {skipped[0] if skipped else 'there are none'}")
    return _Plan(selection, cameras, chosen, [identity(source) for source in sources], skipped, [source.path for source in sources])


def _write(workshop: Path, out: Path, plan: _Plan, found: Survey, file_size_in_mb: int) -> None:
    """The dataset, where it grows."""
    selection, cameras, skipped = plan.selection, plan.cameras, plan.skipped
    skipped.extend(found.bad.values())
    taken = {number: plan.chosen[number] for number in found.episodes}
    if not taken:
        raise UserError(f"{plan.chosen[0][0].path}: no episodes to write, all {len(plan.chosen)} are left out: {skipped[0]}")
    used = list({id(source): source for source, _ in taken.values()}.values())
    scale, about, lines = common_scale(used, found.episodes.values())
    for line in [*told(used, taken, found), *lines]:
        say(line)
    description = describe(used, cameras, selection, scale, about) | {
        "sources": plan.identities,
        "outcome": outcomes_of(used, taken, found),
        "closing_row": closing_row(used, taken, found, scale),
        "notes": [without_folders(line, plan.paths) for line in [*(note for source in used for note in source.notes), *lines]],
        "skipped": [],
    }
    done = {info["number"] for info in finished_episodes(workshop)} if (workshop / UNFINISHED).is_dir() else set()
    if done:
        say(f"{out}: {len(done)} of {len(taken)} episodes are there already")
    names = {number: f"{source.path}: {listed.name}" for number, (source, listed) in taken.items()}
    remaining = {number: one for number, one in taken.items() if number not in done}

    before = len(skipped)

    def episodes() -> Iterator[Episode]:
        yield from read_ahead(remaining, cameras, selection, scale, skipped)
        if not done and len(skipped) - before == len(remaining):
            raise UserError(f"{plan.paths[0]}: no episodes to write, all {len(remaining)} are left out: {skipped[before]}")
        description["skipped"] = [without_folders(line, plan.paths) for line in skipped]  # once all are known

    write_dataset(
        workshop,
        episodes(),
        fps=used[0].control_hz,
        state_names=used[0].state_names,
        action_names=used[0].action_names,
        description=description,
        robot_type=common(used, lambda source: source.robot),
        data_files_size_in_mb=file_size_in_mb,
        video=selection.video,
        resume=True,
        name=lambda episode: names[episode.info["number"]],
        refuse=(lambda error: skipped.append(str(error))) if selection.skip_bad else None,
    )


def _is_whole(out: Path, wanted: str) -> bool:
    """Whether a call before has finished this dataset, and was cut off before it took its place."""
    workshop = _unfinished(out)
    try:
        same = (workshop / FINGERPRINT).read_bytes() == wanted.encode()
        return (
            same
            and (workshop / INFO).is_file()
            and bool(read_json(workshop / DESCRIPTION, "") and read_rows(workshop, ("tasks", "length", "worldenv_info")))
        )
    except (UserError, OSError):
        return False


def _publish(workshop: Path, out: Path, settings: dict, selection: Selection) -> None:
    """The whole dataset takes its place. Until it has, nothing of it is lost: its files lie in both places at once."""
    description, rows = read_json(workshop / DESCRIPTION, ""), read_rows(workshop, ("tasks", "length", "worldenv_info"))
    card = cards.ingested(description, [(row["tasks"][0], row["length"] - 1) for row in rows])
    taken = [json.loads(row["worldenv_info"])["from"] for row in rows]
    config = {"source": description["source"], "episodes": len(rows), "taken": taken, "skipped": description["skipped"]}
    with staged(out) as folder:
        for path in sorted(workshop.rglob("*")):
            name = path.relative_to(workshop)
            if path.is_file() and name.parts[0] not in (FINGERPRINT, UNFINISHED):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                _link(path, folder / name)
        write_artifact(folder, "dataset", config, None, make_provenance(settings, {}, selection.seed), card)
    shutil.rmtree(workshop, ignore_errors=True)
    for line in description["skipped"]:
        say(f"left out: {line}")
    say(f"{out}: {len(rows)} episodes, {sum(row['length'] - 1 for row in rows):,} actions, {description['control_hz']:g} Hz")


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # a file system without hard links
        shutil.copy2(path, target)


def _unfinished(out: Path) -> Path:
    place = Path(os.path.realpath(out))
    return place.with_name(f".{place.name}.unfinished")


def _workshop(out: Path, wanted: str) -> Path:
    """Where an unfinished dataset grows, beside the place where it will appear; that of other settings or sources is thrown away."""
    folder = _unfinished(out)
    mark = folder / FINGERPRINT
    if folder.is_dir() and any(folder.iterdir()) and not mark.is_file():
        raise UserError(f"{folder}: no unfinished dataset of worldenv, expected this place to be free; move it away")
    if mark.is_file() and (mark.read_bytes() != wanted.encode() or ((folder / INFO).is_file() and not _is_whole(out, wanted))):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(wanted)
    return folder


def read_ahead(
    chosen: dict[int, tuple[Source, Listed]], cameras: dict[str, str], selection: Selection, scale: ActionScale, skipped: list[str]
) -> Iterator[Episode]:
    """The chosen episodes, by number, in order, decoded by all cores a few ahead of the one that is being written: memory stays flat."""
    cores = os.cpu_count() or 1
    waiting: deque = deque()
    remaining = iter(chosen.items())
    with ThreadPoolExecutor(cores) as pool, track("ingest", total=len(chosen), unit="episodes") as bar:
        for number, one in itertools.islice(remaining, cores + 1):
            waiting.append(pool.submit(_prepared, number, *one, cameras, selection, scale))
        while waiting:
            future = waiting.popleft()
            for number, one in itertools.islice(remaining, 1):
                waiting.append(pool.submit(_prepared, number, *one, cameras, selection, scale))
            try:
                yield future.result()
            except UserError as error:
                if not selection.skip_bad:
                    for other in waiting:
                        other.cancel()
                    raise UserError(f"{error} (or leave such episodes out: --skip-bad)") from error
                skipped.append(str(error))
            bar.advance()


def _prepared(number: int, source: Source, listed: Listed, cameras: dict[str, str], selection: Selection, scale: ActionScale) -> Episode:
    episode = source.read(listed, tuple(cameras))
    missing = sorted(set(cameras) - set(episode.frames))
    if missing:
        raise UserError(f"{source.path}: {listed.name}: no camera {missing[0]!r}, found {sorted(episode.frames)}; leave the episode out")
    episode.frames = {new: resized(episode.frames[old], selection.resize) for old, new in cameras.items()}
    episode.last_action = closing_action(episode.actions, episode.last_action, scale, source)
    episode.actions = np.clip(scale.to_unit(episode.actions), -1, 1).astype(np.float32)
    episode.instruction = instruction_of(listed)
    episode.info |= {"from": listed.name, "number": number}
    return episode


def resized(frames: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """(T, H, W, 3) uint8 -> the same with height and width of `size`, by averaging where it shrinks."""
    if size is None or frames.shape[1:3] == tuple(size):
        return frames
    return np.stack([np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BOX)) for frame in frames])
