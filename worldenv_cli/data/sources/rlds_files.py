"""Where the files of an RLDS dataset lie: its version, its splits and their shards, and which of them are missing."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError

SHARD = re.compile(r"(?P<dataset>.+)-(?P<split>\w+)\.tfrecord(?:-(?P<number>\d+)-of-(?P<count>\d+))?")
VERSION = re.compile(r"\d+(\.\d+)*")


def versions(path: Path) -> list[Path]:
    """The folders with a features.json: the path itself, or one or two below it. What tensorflow-datasets did not finish has other names."""
    if (path / "features.json").is_file():
        return [path]
    for pattern in ("*", "*/*"):
        found = [folder for folder in path.glob(pattern) if VERSION.fullmatch(folder.name) and (folder / "features.json").is_file()]
        if found:
            return sorted(found, key=lambda folder: [int(part) for part in folder.name.split(".")])
    return []


def version_of(path: Path) -> tuple[Path, list[str]]:
    """(the path itself, or its only or newest version, notes)."""
    found = versions(path)
    if not found:
        raise UserError(f"{path}: no features.json there or in a folder <version> below, expected a tensorflow-datasets folder; check the path")
    names = sorted({folder.parent for folder in found})
    if len(names) > 1:
        raise UserError(f"{path}: several datasets, expected one; give one of {[name.relative_to(path).as_posix() for name in names]}")
    return found[-1], [f"version {found[-1].name}, the newest of {len(found)}"] if len(found) > 1 else []


def shards_of(folder: Path, split: str | None, notes: list[str]) -> list[Path]:
    found = [path for path in sorted(folder.iterdir()) if ".tfrecord" in path.name and not path.name.startswith(".")]
    shards = {path: match for path in found if (match := SHARD.fullmatch(path.name))} or {path: None for path in found}
    if not shards:
        other = next((path.name for path in sorted(folder.iterdir()) if ".array_record" in path.name or ".riegeli" in path.name), None)
        told = f"found {other}: write the dataset again with file_format='tfrecord'" if other else "expected the shards beside features.json"
        raise UserError(f"{folder}: no .tfrecord files; {told}")
    wrong = next((path for path in shards if not path.is_file()), None)
    if wrong:
        raise UserError(f"{wrong}: not a file, expected a shard of TFRecords")
    counts = Counter(match["split"] if match else "" for match in shards.values())
    if split is not None:
        if split not in counts:
            raise UserError(f"{folder}: no split {split!r}, found {sorted(counts)}; choose one of them with --filter-key")
        shards = {path: match for path, match in shards.items() if match and match["split"] == split}
    elif len(counts) > 1:
        notes.append(f"splits {' and '.join(sorted(counts))}, all of them taken; one alone with --filter-key")
    for name in dict.fromkeys(match["split"] for match in shards.values() if match):
        declared = {int(match["count"]) for match in shards.values() if match and match["split"] == name and match["count"]}
        if declared and max(declared) > counts[name]:
            notes.append(f"{counts[name]} of {max(declared)} shards of the split {name} lie there: those are taken")
    return list(shards)


def episodes_that_are_missing(folder: Path, shards: Sequence[Path], owners: Sequence[Path]) -> list[str]:
    """A line for each shard with fewer episodes than dataset_info.json lists: one that ends between two records looks whole.

    `owners`: the shard of each episode that was found.
    """
    if not (folder / "dataset_info.json").is_file():
        return []
    try:
        splits = json.loads((folder / "dataset_info.json").read_bytes())["splits"]
        declared = {split["name"]: [int(length) for length in split["shardLengths"]] for split in splits}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    notes, held = [], Counter(owners)
    for shard in shards:
        match = SHARD.fullmatch(shard.name)
        lengths = declared.get(match["split"], []) if match else []
        number = int(match["number"] or 0) if match else 0
        if number < len(lengths) and held[shard] < lengths[number]:
            notes.append(f"{shard.name}: {held[shard]} of the {lengths[number]} episodes that dataset_info.json lists")
    return notes
