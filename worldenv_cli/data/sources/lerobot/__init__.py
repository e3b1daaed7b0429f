"""LeRobotDatasets of versions 2.0, 2.1 and 3.0, pictures in the tables, beside them or in videos.

A row is an observation and the action that was taken on it; what the last action of an episode led to was not kept, so it is left out. Rows are
found by what they say of themselves, cameras count once their files are there, and only what is asked for has to be usable. Statistics are not
read: they are computed again, exactly.
"""

from collections.abc import Sequence
from pathlib import Path

from ....errors import UserError
from ...actions import ActionScale
from ...layout import DESCRIPTION, UNKNOWN
from ...pictures import AGAIN
from ..source import Listed, Source, SourceConfig
from .episodes import Place, listed, places_of
from .info import Feature, Info, cameras_of, config_columns, described_by_us, names_of, numbers_feature, picture_size, read_info
from .reader import Reader
from .rows import Rows

__all__ = ["described_by_us", "open_lerobot", "open_stored"]


def open_lerobot(path: Path, config: SourceConfig) -> Source:
    reader, info, episodes, unusable, left_out = _open(path, config)
    described = described_by_us(path)
    action = described["action"] if reader.action == "action" else {}
    return Source(
        format=f"lerobot {info.codebase_version}",
        path=path,
        control_hz=info.fps,
        robot=None if info.robot_type in (None, "", UNKNOWN) else info.robot_type,
        state_names=_unique([name for key, feature in reader.state.items() for name in names_of(key, feature)]),
        action_names=_unique(names_of(reader.action, reader.action_feature)),
        action={"meaning": action.get("meaning", "as recorded by the source"), "unit": action.get("recorded_unit", _unit(action))}
        | ({"absolute": True} if action.get("absolute") else {}),
        cameras={
            camera: {"orientation": None, **described["cameras"].get(camera, {}), "size": list(picture_size(feature))}
            for camera, (_, feature) in reader.cameras.items()
        },
        episodes=episodes,
        read=reader.read,
        outcome=_outcome(reader, episodes),
        limits=(action["low"], action["high"]) if {"low", "high"} <= action.keys() else None,
        gripper=action.get("gripper"),
        unusable=left_out,
        unusable_cameras=unusable,
        closing_row=described.get("closing_row"),
    )


def open_stored(path: Path) -> tuple[Reader, list[Listed]]:
    """A dataset of ours, to be read as it is stored. Raises UserError where anything of it is missing."""
    reader, _, episodes, unusable, _ = _open(path, SourceConfig())
    if unusable:
        camera, reason = next(iter(unusable.items()))
        raise UserError(f"{path}: camera {camera} cannot be read: {reason}; {AGAIN}")
    wrong = next((one for one in episodes if one.problem), None)
    if wrong:
        raise UserError(f"{path}: {wrong.name}: {wrong.problem}")
    return reader, episodes


def _open(path: Path, config: SourceConfig) -> tuple[Reader, Info, list[Listed], dict[str, str], list[str]]:
    info = read_info(path)
    state, action = config_columns(config)
    features = {name: numbers_feature(path, info, name) for name in [*state, action]}
    cameras, unusable = cameras_of(path, info)
    filmed = [name for name, feature in cameras.values() if feature.dtype == "video"]
    places, tasks = places_of(path, info, filmed, config)
    if not places:
        raise UserError(f"{path}: no episodes, expected one at least; {AGAIN}")
    rows = Rows(path, one_each=info.codebase_version != "v3.0")
    episodes, left_out = [], []
    for place, declared in places:
        try:
            episodes.append(listed(path, place, declared, tasks, rows, config))
        except UserError as error:
            if not config.skip_bad:
                raise
            left_out.append(str(error))
    cameras, missing = _present(path, cameras, [place for place, _ in places], rows)
    described = described_by_us(path)
    scale = ActionScale.described(described["action"] if action == "action" else {}, features[action].shape[0], str(path / DESCRIPTION))
    reader = Reader(path, rows, {name: features[name] for name in state}, action, features[action], cameras, info.fps, config.success, scale)
    return reader, info, episodes, unusable | missing, left_out


def _present(path: Path, cameras: dict[str, tuple[str, Feature]], places: Sequence[Place], rows: Rows) -> tuple[dict, dict[str, str]]:
    """(the cameras of which there is anything, {camera: why the others cannot be taken})."""
    tables = dict.fromkeys(place.table for place in places if place.table is not None and place.table.is_file())
    columns = _columns(rows, tables)
    usable, missing = {}, {}
    for camera, (name, feature) in cameras.items():
        if feature.dtype == "video" and not any(name in place.films and place.films[name].path.is_file() for place in places):
            missing[camera] = f"its videos are missing: none lies in {path.name}/videos"
        elif feature.dtype == "image" and columns is not None and name not in columns:
            missing[camera] = f"no column {name!r} in the data"
        else:
            usable[camera] = name, feature
    return usable, missing


def _columns(rows: Rows, tables) -> list[str] | None:
    """Of the first table that can be opened; what is wrong with the others is told where they are read."""
    for table in tables:
        try:
            return rows.columns(table)
        except UserError:
            continue
    return None


def _outcome(reader: Reader, episodes: Sequence[Listed]) -> str:
    """One line; files may differ in what they record, and a dataset of ours knows of which episodes it is unknown."""
    places = [listed.key[0] for listed in episodes]
    known = [place for place in places if place.facts.get("outcome") != UNKNOWN or reader.success is not None]
    if not known:
        return f"{UNKNOWN}, as the dataset says" if places else UNKNOWN
    columns = {}
    for file in dict.fromkeys(place.table for place in known if place.table is not None and place.table.is_file()):
        try:
            columns[reader.outcome_column(file)] = None
        except UserError:
            if reader.success is not None:
                raise
    lines = [_told(reader, column) for column in columns if column]
    return "; ".join(lines) if lines else "unknown: neither next.success nor next.reward is recorded"


def _told(reader: Reader, column: str) -> str:
    told = "named by --success" if reader.success else "above 0" if column == "next.reward" else "recorded"
    return f"{column}, {told}"


def _unit(action: dict):
    """The physical size of 1, which a dataset of ours without a scale keeps under that name."""
    return None if "offset" in action else action.get("unit")


def _unique(names: list[str]) -> list[str]:
    """Several columns can name their numbers alike; then the number's place tells them apart."""
    return names if len(set(names)) == len(names) else [f"{name}_{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
