"""What an artifact records of itself: what it was made from, and the sha256 of each of its files, checked whenever the artifact is used."""

import hashlib
import json
from pathlib import Path

from .atomic import read_json, write_json
from .errors import UserError

PROVENANCE = "provenance.json"
CARD = "README.md"  # may be completed by hand or for the Hub: it counts for nothing
_hashes: dict[tuple[int, int, int, int], str] = {}  # {(device, inode, size, time of change): sha256}, so that a process reads a file once


def write_provenance(folder: Path, provenance: dict) -> None:
    """Write provenance.json with the sha256 of every other file of `folder`: the last file of an artifact to be written."""
    write_json(folder / PROVENANCE, {**provenance, "files": {name: _sha256(folder / name) for name in own_files(folder)}})


def own_files(folder: Path) -> list[str]:
    """Names of the files that make up an artifact, relative to its folder: neither card, nor provenance, nor hidden files (.gitattributes)."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in (CARD, PROVENANCE) and not any(part.startswith(".") for part in name.split("/")))


def recorded_files(folder: Path) -> dict[str, str] | None:
    """{name: sha256} as provenance.json has it; None for a folder that no command of this project wrote."""
    try:
        record = read_json(folder / PROVENANCE)
    except (UserError, OSError):
        return None
    files = record.get("files")
    return files if isinstance(files, dict) else None


def verify(folder: Path, command: str = "") -> dict[str, str]:
    """{name: sha256} of an artifact's files, which are those that were written. `command` makes it again, and is named where they are not.

    Raises UserError for the first file that is missing or was changed, and for a folder without such a record.
    """
    again = f"make it again with `worldenv {command} RECIPE --force`" if command else "make it again"
    if not (folder / PROVENANCE).is_file():
        raise UserError(f"{folder} holds no {PROVENANCE}: nothing tells what it was made from; {again}, or copy that file here too")
    read_json(folder / PROVENANCE)
    files = recorded_files(folder)
    if files is None:
        raise UserError(f"{folder / PROVENANCE} does not record the files of an artifact: {again}")
    for name, written in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) and not _in_hub_cache(folder, path):
            raise UserError(f"{path} leads out of its artifact's folder: {again}, or restore it")
        if not path.is_file():
            raise UserError(f"{path} is missing, though {PROVENANCE} lists it: {again}, or restore it")
        if _sha256(path) != written:
            raise UserError(f"{path} does not match its provenance (changed after it was written): {again}, or restore it")
    return files


def _in_hub_cache(folder: Path, path: Path) -> bool:
    """The Hub's cache keeps the files of a snapshot beside it, behind links."""
    snapshots = next((parent for parent in folder.absolute().parents if parent.name == "snapshots"), None)
    return snapshots is not None and path.resolve().is_relative_to((snapshots.parent / "blobs").resolve())


def _sha256(path: Path) -> str:
    status = path.stat()
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _hashes:
        with path.open("rb") as file:
            _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[key]


def total_hash(files: dict[str, str]) -> str:
    """One sha256 for {name: sha256}."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
