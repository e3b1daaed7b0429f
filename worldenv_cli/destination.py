"""Where results may be written. One function decides for every command, before anything is touched, so that nothing of the user's is replaced."""

import os
from collections.abc import Sequence
from pathlib import Path

from .atomic import read_json
from .errors import UserError
from .provenance import CARD, PROVENANCE, recorded_files

LOCK = ".lock"  # in a run's folder, while a process works there
LITTER = {LOCK, "run.log", ".DS_Store"}  # a folder with nothing else in it is empty: a command was cut off before it wrote, or somebody looked in
SOFTWARE = "worldenv"  # PNG files that are written for the user carry it as their "Software"
SHOWN = 3  # names in a message


def check_destination(out: Path, kind: str, sources: Sequence[Path] = ()) -> None:
    """Raise UserError unless `out` may be written as a "dataset", a "run", a "pool" or a "file" (a picture).

    It may if it is absent, empty, or of this project and of the same kind. A dataset is replaced as a whole, so that nothing else may lie in it;
    the folder of a run or a pool keeps what else is there. `sources`, what is read, may neither be that place, nor hold it, nor lie inside it.
    Symbolic links are followed first. Nothing is written here.
    """
    if str(out).startswith("~"):
        raise UserError(f"{out} begins with ~, which your shell did not replace by your home folder: write the whole path")
    place = Path(os.path.realpath(out))
    for source in sources:
        if os.path.lexists(source):  # others are names on the Hub
            _check_source(out, place, source)
    if place in (Path(place.anchor), Path(os.path.realpath(os.path.expanduser("~")))):
        raise UserError(f"{out} is {'your home folder' if place != Path(place.anchor) else 'the root folder'}: name a new folder with --out")
    if kind == "dataset" and Path.cwd().is_relative_to(place):
        raise UserError(f"{out} is the folder in which you are, or one above it, and would be replaced: name a new folder with --out")
    _check_surroundings(out, place)
    if place.exists():
        (_check_file if kind == "file" else _check_folder)(out, place, kind)
    writable = next(parent for parent in [place.parent if kind in ("dataset", "file") else place, *place.parents] if parent.exists())
    if not os.access(writable, os.W_OK | os.X_OK):
        raise UserError(f"{out}: cannot be written, {writable} is read-only for you (no permission); choose another place with --out")


def kind_of(folder: Path) -> str | None:
    """What a command of this project wrote into `folder`: "dataset", "policy", "run", ...; None where it is somebody else's."""
    try:
        config = read_json(folder / "config.json")
    except (UserError, OSError):
        return None
    kind = config.get("kind")
    return kind if isinstance(kind, str) and isinstance(config.get("worldenv_version"), str) else None


def foreign_files(folder: Path) -> list[str]:
    """What lies in an artifact's folder and is not part of the artifact."""
    own = {*(recorded_files(folder) or ()), CARD, PROVENANCE}
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(name for name in names if name not in own and name.rpartition("/")[2] not in LITTER)


def _check_source(out: Path, place: Path, source: Path) -> None:
    read = Path(os.path.realpath(source))
    if place == read:
        raise UserError(f"{out} is {source}, which is read: it would be overwritten; name another place with --out")
    if read.is_relative_to(place):
        raise UserError(f"{out} holds {source}, which is read: it would be replaced; name a new folder with --out")
    if place.is_relative_to(read):
        raise UserError(f"{out} lies inside {source}, which is read: nothing is written there; name a folder outside it with --out")


def _check_surroundings(out: Path, place: Path) -> None:
    """Folders on the way to it may be anything but files, or artifacts, which hold nothing but what they were written with."""
    for parent in place.parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"{out}: {parent} is a file, expected a folder; name another place with --out")
        kind = kind_of(parent)
        if kind not in (None, "run", "pool"):
            raise UserError(f"{out} lies inside the {kind} {parent}: nothing is added to it; name a folder outside it with --out")


def _check_folder(out: Path, place: Path, kind: str) -> None:
    if not place.is_dir():
        raise UserError(f"{out} is a file: expected a new folder for a {kind}, which would replace it; name another with --out")
    names = sorted(path.name for path in place.iterdir() if path.name not in LITTER)
    if not names or (kind == "run" and all(_is_artifact(place / name) for name in names)):
        return
    found = kind_of(place)
    if found != kind or (kind == "dataset" and recorded_files(place) is None):
        what = f"is a {found} of worldenv" if found not in (None, kind) else f"holds {_listed(names)}, which no `worldenv` command wrote there"
        raise UserError(f"{out} {what}: expected a new or empty folder, or a {kind} of worldenv; name another with --out, nothing was changed")
    if kind == "dataset":
        _check_dataset(out, place)


def _check_dataset(out: Path, place: Path) -> None:
    foreign = foreign_files(place)
    if foreign:
        raise UserError(f"{out} also holds {_listed(foreign)}, not part of the dataset that would be replaced: move that away, or name another --out")
    if "artifact" in read_json(place / PROVENANCE):
        raise UserError(f"{out} belongs to a run, whose results were made from it: name another folder with --out")


def _is_artifact(folder: Path) -> bool:
    return folder.is_dir() and recorded_files(folder) is not None


def _check_file(out: Path, place: Path, kind: str) -> None:
    from PIL import Image, UnidentifiedImageError

    if not place.is_file():
        raise UserError(f"{out} is not a file that can be replaced: name a new file")
    try:
        with Image.open(place) as picture:
            ours = picture.info.get("Software") == SOFTWARE
    except (UnidentifiedImageError, OSError, ValueError):
        ours = place.stat().st_size == 0
    if not ours:
        raise UserError(f"{out} exists, and no `worldenv` command drew it: name a new file, nothing was changed")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
