"""What is said of a dataset that was made of recorded data: to people while it is made, and in meta/worldenv.json."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ..artifacts import package_versions
from ..hub import downloaded, files_of
from .actions import ActionScale
from .layout import CLOSING_ROW
from .outcomes import counted
from .selection import Selection, common
from .sources import Listed, Source
from .survey import Survey, closing_rule


def told(sources: Sequence[Source], taken: dict[int, tuple[Source, Listed]], found: Survey) -> list[str]:
    """For each source, what was read and assumed of it, and what is not known."""
    lines = []
    for source, outcome in zip(sources, outcomes_of(sources, taken, found), strict=True):
        lines.append(f"{source.path.name}: {outcome['episodes']} ({outcome['known']})")
        unknown = [] if source.robot else ["robot"]
        unknown += [f"orientation of camera {camera}" for camera, about in source.cameras.items() if about["orientation"] is None]
        lines += [f"{source.path.name}: not recorded: {', '.join(unknown)}"] if unknown else []
        lines += [f"{source.path.name}: camera {camera} is left out: {reason}" for camera, reason in source.unusable_cameras.items()]
        lines += [f"{source.path.name}: {note}" for note in source.notes]
    return lines


def outcomes_of(sources: Sequence[Source], taken: dict[int, tuple[Source, Listed]], found: Survey) -> list[dict]:
    """[{"source", "episodes": how many of which outcome, "known": how}], one for each source."""
    rows = []
    for source in sources:
        outcomes = [found.episodes[number].outcome for number, (other, _) in taken.items() if other is source]
        rows.append({"source": source.path.name, "episodes": counted(outcomes), "known": source.outcome})
    return rows


def closing_row(sources: Sequence[Source], taken: dict[int, tuple[Source, Listed]], found: Survey, scale: ActionScale) -> str:
    if len(sources) == 1 and sources[0].closing_row:
        return sources[0].closing_row
    return CLOSING_ROW.format(action=closing_rule([(taken[number][0], one.has_last) for number, one in found.episodes.items()], scale))


def identity(source: Source) -> dict:
    """What the record says of a source: enough to find it again, without this machine's folders."""
    found = {"format": source.format, "episodes": len(source.episodes), "outcome": source.outcome, "read_as": source.read_as}
    cached = downloaded(source.path)
    if cached:
        return {"name": cached[0], "commit": cached[1], **found}
    return {"name": source.path.name, "bytes": sum(path.stat().st_size for path in files_of(source.path)), **found}


def without_folders(line: str, paths: Iterable[Path]) -> str:
    """A line about sources, in one line and without the folders of this machine in which they lie."""
    names = {str(form): path.name or path.absolute().name for path in paths for form in (path, path.absolute(), path.resolve())}
    for full in sorted(names, key=len, reverse=True):
        if "/" in full:
            line = line.replace(full, names[full])
    return " ".join(line.splitlines())


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
            new: scaled_camera(first.cameras[old], selection.resize)
            | {"orientation": common(sources, lambda source: source.cameras[old]["orientation"])}
            for old, new in cameras.items()
        },
        "selection": selection.model_dump(mode="json"),
        "environment_steps": 0,
        "versions": package_versions(),
    }


def scaled_camera(camera: dict, size: tuple[int, int] | None) -> dict:
    """A camera's description once its pictures have another size: focal lengths and centre in pixels change with them."""
    if size is None or tuple(camera["size"]) == tuple(size):
        return camera
    scaled = camera | {"size": list(size), "recorded_size": camera["size"]}
    if "intrinsics" in camera:
        (height, width), matrix = camera["size"], np.array(camera["intrinsics"], dtype=float)
        scaled["intrinsics"] = (np.diag([size[1] / width, size[0] / height, 1]) @ matrix).tolist()
    return scaled


def _orientation_of(camera: str) -> Callable[[Source], str | None]:
    return lambda source: source.cameras[camera]["orientation"]
