"""Recorded data in, a dataset out: the chosen episodes of all sources, their actions in one scale, and what is known of them."""

import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from .. import cards
from ..artifacts import fingerprint, is_current, make_provenance, package_versions, write_artifact
from ..atomic import disk_full_told, staged
from ..destination import check_destination
from ..errors import UserError
from ..hub import downloaded, files_of, state_of
from ..locks import locked
from ..progress import say, track
from .actions import ActionScale
from .layout import CLOSING_ROW, DESCRIPTION, INFO, Episode
from .outcomes import counted
from .selection import Selection, check_same, choose_cameras, choose_episodes, common, instruction_of
from .sources import Listed, Source
from .survey import Survey, closing_action, closing_rule, common_scale, survey
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
    for source in sources:
        if source.control_hz is None:
            raise UserError(f"{source.path}: the source does not record its control rate; tell it: --control-hz 20, say")
    cameras = [choose_cameras(source, selection) for source in sources][0]
    check_same(sources, list(cameras), resized=selection.resize is not None)
    skipped = [*unopened, *(line for source in sources for line in source.unusable)]
    chosen = choose_episodes(sources, selection, skipped)
    if not chosen:
        raise UserError(f"{sources[0].path}: no episode that can be taken, of {sum(len(source.episodes) for source in sources)}: {skipped[0]}")
    identities = [_identity(source) for source in sources]
    settings = {"selection": selection.model_dump(mode="json"), "sources": identities, "files": [state_of(source.path) for source in sources]}
    if dry_run:
        current = not force and is_current(out, fingerprint(settings, {}))
        steps = sum(listed.steps for _, listed in chosen)
        say(f"{out}: up to date" if current else f"{out}: would be made of {len(chosen)} episodes, {steps:,} recorded steps")
        return
    with locked(out, "dataset"), disk_full_told(out):
        if not force and is_current(out, fingerprint(settings, {})):
            shutil.rmtree(_unfinished(out), ignore_errors=True)
            say(f"{out}: up to date")
            return
        workshop = _workshop(out, fingerprint(settings, {}))
        if not _is_whole(workshop):
            _write(workshop, out, chosen, sources, cameras, selection, identities, skipped, file_size_in_mb)
        _publish(workshop, out, settings, selection)


def _write(
    workshop: Path, out: Path, chosen, sources: Sequence[Source], cameras: dict[str, str], selection: Selection, identities, skipped, size
) -> None:
    """The dataset, where it grows. `skipped` is completed by what is found out on the way."""
    found = survey(chosen, skip_bad=selection.skip_bad)
    skipped += found.bad.values()
    taken = {number: chosen[number] for number in found.episodes}
    if not taken:
        raise UserError(f"{sources[0].path}: no episodes to write, all {len(chosen)} are left out: {skipped[0]}")
    used = [source for source in sources if any(source is other for other, _ in taken.values())]
    scale, about, lines = common_scale(used, found.episodes.values())
    for line in [*_told(used, taken, found), *lines]:
        say(line)
    description = describe(used, cameras, selection, scale, about) | {
        "sources": identities,
        "outcome": _outcomes(used, taken, found),
        "closing_row": _closing_row(used, found, scale),
        "notes": [line for source in used for line in source.notes] + lines,
        "skipped": skipped,
    }
    done = {info["number"] for info in finished_episodes(workshop)} if (workshop / UNFINISHED).is_dir() else set()
    if done:
        say(f"{out}: {len(done)} of {len(taken)} episodes are there already")
    refused = skipped.append if selection.skip_bad else None
    names = {number: f"{source.path}: {listed.name}" for number, (source, listed) in taken.items()}
    write_dataset(
        workshop,
        read_ahead({number: one for number, one in taken.items() if number not in done}, cameras, selection, scale, skipped),
        fps=sources[0].control_hz,
        state_names=used[0].state_names,
        action_names=used[0].action_names,
        description=description,
        robot_type=common(used, lambda source: source.robot),
        data_files_size_in_mb=size,
        video=selection.video,
        resume=True,
        name=lambda episode: names[episode.info["number"]],
        refuse=None if refused is None else lambda error: refused(str(error)),
    )


def _is_whole(workshop: Path) -> bool:
    """Whether a call before has finished the dataset, and was cut off before it took its place. What cannot be read is made again."""
    if not (workshop / INFO).is_file():
        return False
    try:
        return bool(read_json(workshop / DESCRIPTION, "") and read_rows(workshop, ("tasks", "length", "worldenv_info")))
    except UserError:
        for path in workshop.iterdir():
            if path.name != FINGERPRINT:
                shutil.rmtree(path)
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
    if mark.is_file() and mark.read_bytes() != wanted.encode():
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


def _told(sources: Sequence[Source], taken: dict[int, tuple[Source, Listed]], found: Survey) -> list[str]:
    """For each source, what was read and assumed of it, and what is not known."""
    lines = []
    for source, outcome in zip(sources, _outcomes(sources, taken, found), strict=True):
        lines.append(f"{source.path.name}: {outcome['episodes']} ({outcome['known']})")
        unknown = [] if source.robot else ["robot"]
        unknown += [f"orientation of camera {camera}" for camera, about in source.cameras.items() if about["orientation"] is None]
        lines += [f"{source.path.name}: not recorded: {', '.join(unknown)}"] if unknown else []
        lines += [f"{source.path.name}: camera {camera} is left out: {reason}" for camera, reason in source.unusable_cameras.items()]
        lines += [f"{source.path.name}: {note}" for note in source.notes]
    return lines


def _outcomes(sources: Sequence[Source], taken: dict[int, tuple[Source, Listed]], found: Survey) -> list[dict]:
    """[{"source", "episodes": how many of which outcome, "known": how}], one for each source."""
    told = []
    for source in sources:
        outcomes = [found.episodes[number].outcome for number, (other, _) in taken.items() if other is source]
        told.append({"source": source.path.name, "episodes": counted(outcomes), "known": source.outcome})
    return told


def _closing_row(sources: Sequence[Source], found: Survey, scale: ActionScale) -> str:
    if len(sources) == 1 and sources[0].closing_row:
        return sources[0].closing_row
    return CLOSING_ROW.format(action=closing_rule(sources, [one.has_last for one in found.episodes.values()], scale))


def _identity(source: Source) -> dict:
    """What the record says of a source: enough to find it again, without this machine's folders."""
    found = {"format": source.format, "episodes": len(source.episodes), "outcome": source.outcome, "read_as": source.read_as}
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


def describe(sources: Sequence[Source], cameras: dict[str, str], selection: Selection, scale: ActionScale, about: dict) -> dict:
    """meta/worldenv.json, but for what the episodes tell. `recorded = offset + unit * action` where there is an offset."""
    first = sources[0]
    unit = scale.description() | ({"recorded_unit": first.action["unit"]} if first.action["unit"] is not None else {})
    if scale.is_identity:
        unit = {"unit": first.action["unit"]}
    return {
        "source": first.format,
        "control_hz": first.control_hz,
        "robot": common(sources, lambda source: source.robot),
        "action": {
            "names": first.action_names,
            **{key: value for key, value in first.action.items() if key != "unit"},
            "range": [-1, 1],
            **unit,
            **about,
            "gripper": common(sources, lambda source: source.gripper),
        },
        "state": {"names": first.state_names},
        "cameras": {
            new: _scaled(first.cameras[old], selection.resize) | {"orientation": common(sources, lambda source: source.cameras[old]["orientation"])}
            for old, new in cameras.items()
        },
        "selection": selection.model_dump(mode="json"),
        "environment_steps": 0,
        "versions": package_versions(),
    }
