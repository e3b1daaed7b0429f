"""meta/info.json: what a LeRobotDataset declares. Only what is asked for has to be right, and declared is not yet there."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, NonNegativeInt, PositiveInt, ValidationError

from ....errors import UserError
from ...layout import CAMERA, DESCRIPTION, INFO
from ...tables import read_json
from ..source import LARGEST, SourceConfig, validated

VERSIONS = ("v2.0", "v2.1", "v3.0")
ROW = 65_536  # numbers of a state or an action at most
PICTURES = ("image", "video")
CHANNELS = (1, 3, 4)  # grey, colours, colours and transparency


class _Action(BaseModel):
    names: list[str] = []
    meaning: str = "as recorded by the source"
    unit: list | None = None
    recorded_unit: list | None = None
    offset: list[float] | None = None
    low: list[float] | None = None
    high: list[float] | None = None
    gripper: dict[str, int | float] | None = None
    absolute: bool = False


class _Described(BaseModel):
    """What is needed of meta/worldenv.json, which a dataset of ours has."""

    action: _Action = _Action()
    cameras: dict[str, dict] = {}
    closing_row: str | None = None


def described_by_us(path: Path) -> dict:
    """What meta/worldenv.json says of action, cameras and closing rows, what is unknown left out; nothing of a dataset without one."""
    found = read_json(path / DESCRIPTION, "") if (path / DESCRIPTION).is_file() else {}
    return validated(_Described, found, str(path / DESCRIPTION)).model_dump(exclude_none=True)


def _rate(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        raise ValueError("expected a number")
    return value


class Info(BaseModel):
    """What is needed of meta/info.json."""

    codebase_version: str
    fps: Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False), BeforeValidator(_rate)] | None = None
    features: dict[str, Any]
    data_path: str
    video_path: str | None = None
    robot_type: str | None = None
    chunks_size: PositiveInt = 1000
    total_episodes: NonNegativeInt | None = None


class Feature(BaseModel):
    dtype: str
    shape: list[PositiveInt] = Field(min_length=1, max_length=5)
    names: Any = None
    info: Any = None


def read_info(path: Path) -> Info:
    info = validated(Info, read_json(path / INFO, "expected a LeRobotDataset; check the path"), str(path / INFO))
    if info.codebase_version not in VERSIONS:
        told = "v1 is converted by lerobot.datasets.v2, one step at a time" if info.codebase_version.startswith("v1") else "use LeRobot's converter"
        raise UserError(f"{path / INFO}: codebase_version is {info.codebase_version[:20]!r}, expected one of {', '.join(VERSIONS)}; {told}")
    return info


def numbers_feature(path: Path, info: Info, name: str) -> Feature:
    """The feature of a state or an action, by the name that it has or was given."""
    if name not in info.features:
        found = sorted(other for other, feature in info.features.items() if isinstance(feature, dict) and feature.get("dtype") not in PICTURES)
        raise UserError(f"{path / INFO}: no feature {name!r}, found {found[:20]}; choose with --state and --action")
    feature = validated(Feature, info.features[name], f"{path / INFO}: {name}")
    if int(np.prod(feature.shape)) > ROW:
        raise UserError(f"{path / INFO}: {name} has shape {feature.shape}, expected {ROW:,} numbers a row at most; choose with --state and --action")
    return feature


def names_of(key: str, feature: Feature) -> list[str]:
    """A feature's own names, where it has one for each number; older sets keep them in a dict by kind, or by group."""
    names, size = feature.names, int(np.prod(feature.shape))
    if isinstance(names, dict):
        parts = [part for part in names.values() if isinstance(part, list)]
        first = parts[0] if parts else None
        names = first if first is not None and len(first) == size else [name for part in parts for name in part]
    fitting = isinstance(names, list) and len(names) == size and len({str(name) for name in names}) == size
    return [str(name) for name in names] if fitting else [f"{key}_{i}" for i in range(size)]


def cameras_of(path: Path, info: Info) -> tuple[dict[str, tuple[str, Feature]], dict[str, str]]:
    """({camera: (feature's name, feature)}, {camera: why it cannot be taken}) of everything that is declared as pictures."""
    declared = [key for key, feature in info.features.items() if isinstance(feature, dict) and feature.get("dtype") in PICTURES]
    usable, unusable = {}, {}
    for key in declared:
        short = key.removeprefix(CAMERA).removeprefix("observation.")
        name = key if short in usable or short in unusable else short
        try:
            feature = Feature.model_validate(info.features[key])
        except ValidationError as error:
            wrong = error.errors()[0]
            unusable[name] = f"its {wrong['loc'][0]} is {repr(wrong['input'])[:60]}"
            continue
        reason = _unusable(feature)
        if reason:
            unusable[name] = reason
        else:
            usable[name] = key, feature
    return usable, unusable


def _unusable(feature: Feature) -> str:
    about = feature.info if isinstance(feature.info, dict) else {}
    if any(about.get(name) is True or str(about.get(name)).lower() == "true" for name in ("is_depth_map", "video.is_depth_map")):
        return "a depth map, not a picture of colours"
    if len(feature.shape) == 3 and picture_size(feature) is None or len(feature.shape) not in (2, 3):
        return f"its shape is {feature.shape}, expected [height, width, 3]"
    if max(feature.shape) > LARGEST:
        return f"its shape is {feature.shape}, expected sides of {LARGEST} at most"
    return ""


def picture_size(feature: Feature) -> tuple[int, int] | None:
    """(H, W) of a camera's shape, by the names of its axes where they tell; some datasets put the channel first. None without an axis of colours."""
    shape, names = feature.shape, feature.names
    if len(shape) == 2:
        return tuple(shape)
    axes = [str(name).lower() for name in names] if isinstance(names, list) and len(names) == 3 else []
    if "height" in axes and "width" in axes:
        size, left = (shape[axes.index("height")], shape[axes.index("width")]), 3 - axes.index("height") - axes.index("width")
        return size if shape[left] in CHANNELS else None
    if shape[2] in CHANNELS:
        return tuple(shape[:2])
    return tuple(shape[1:]) if shape[0] in CHANNELS else None


def config_columns(config: SourceConfig) -> tuple[list[str], str]:
    """(features of the state, feature of the action)"""
    return list(config.state or ("observation.state",)), config.action or "action"


def facts_of(text: str | None, where: str) -> dict:
    """worldenv_info: what the writer of a dataset of ours knew of an episode."""
    try:
        facts = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}, worldenv_info: not JSON ({error}); copy or download the dataset again") from error
    if not isinstance(facts, dict):
        raise UserError(f"{where}, worldenv_info: {text[:60]!r}, expected an object; copy or download the dataset again")
    return facts
