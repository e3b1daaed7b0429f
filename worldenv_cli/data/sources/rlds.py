"""RLDS datasets as tensorflow-datasets writes them (`<name>/<version>/` with features.json and TFRecord shards), without tensorflow.

A record is an episode; what its steps hold lies end to end in flat lists, cut by the shapes of features.json. Observation t is seen before
action t, so the last action, whose outcome nobody saw, is left out.
"""

import json
import math
from pathlib import Path

import numpy as np
from pydantic import BaseModel, PositiveInt

from ...errors import UserError
from ..layout import Episode, check_finite
from ..outcomes import rewarded, so_far
from ..pictures import decoded
from .source import MIRRORED, Listed, Source, SourceConfig, check_picture, validated
from .tfrecord import read_record, records

LIBERO_ACTION = ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
CONTROL_HZ = 20  # features.json does not record it; LIBERO's is 20


def open_rlds(path: Path, config: SourceConfig) -> Source:
    folder = _version(path)
    features = _steps(folder)
    shards = sorted(folder.glob("*.tfrecord*"))
    if not shards:
        raise UserError(f"{folder}: no .tfrecord files, expected the shards beside features.json; download it again")
    cameras = {name: _picture_size(feature, f"{folder / 'features.json'}: {name}") for name, feature in features.observation.items() if feature.image}
    state = list(config.state or ("state",))
    action = config.action or "action"
    for name, found in [(name, features.observation) for name in state] + [(action, features.step)]:
        if name not in found or found[name].tensor is None:
            raise UserError(f"{folder / 'features.json'}: no numbers called {name!r}, found {sorted(found)}; choose with --state and --action")
    widths = {name: _width(features.observation[name]) for name in state} | {action: _width(features.step[action])}
    episodes = []
    for shard in shards:
        for number, (offset, length) in enumerate(records(shard)):
            example = read_record(shard, offset, length)
            name = f"{shard.name}: episode {number}"
            instruction = config.instruction or _instruction(example)
            steps = len(example.get(f"steps/{action}", ())) // widths[action]
            episodes.append(Listed(name, instruction, steps, (shard, offset, length)))
    return Source(
        format="rlds",
        path=folder,
        control_hz=CONTROL_HZ,
        robot="panda",
        state_names=[f"{name}_{i}" for name in state for i in range(widths[name])],
        action_names=LIBERO_ACTION if widths[action] == 7 else [f"action_{i}" for i in range(widths[action])],
        action={"meaning": "as recorded; LIBERO's sets: dx, dy, dz, drx, dry, drz, gripper -1 open, +1 closed", "unit": None},
        cameras={camera: {"orientation": MIRRORED, "size": size} for camera, size in cameras.items()},
        episodes=episodes,
        read=lambda listed, chosen: _read(listed, {name: cameras[name] for name in chosen}, state, action, widths),
        outcome="rewards above 0",
    )


def _version(path: Path) -> Path:
    """The folder with features.json: the path itself, or its only or newest version."""
    if (path / "features.json").is_file():
        return path
    found = sorted(file.parent for file in path.glob("*/features.json"))
    if not found:
        raise UserError(f"{path}: no features.json there or one folder below, expected a tensorflow-datasets folder; check the path")
    return found[-1]


class _Shape(BaseModel):
    dimensions: list[PositiveInt] = []  # strings in the file


class _Array(BaseModel):
    shape: _Shape = _Shape()


class _Feature(BaseModel):
    tensor: _Array | None = None
    image: _Array | None = None


class _Steps(BaseModel):
    """The features of a step, as far as they are numbers and pictures."""

    step: dict[str, _Feature]
    observation: dict[str, _Feature]


def _steps(folder: Path) -> _Steps:
    path = folder / "features.json"
    try:
        step = json.loads(path.read_text())["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
        found = {"step": step, "observation": step["observation"]["featuresDict"]["features"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the features of an RLDS dataset ({error}); expected steps with an observation") from error
    return validated(_Steps, found, str(path))


def _width(feature: _Feature) -> int:
    return math.prod(feature.tensor.shape.dimensions)


def _picture_size(feature: _Feature, where: str) -> list[int]:
    """[H, W]"""
    dimensions = feature.image.shape.dimensions
    check_picture(dimensions, where, (2,))
    return dimensions[:2]


def _instruction(example: dict) -> str:
    """The one that every step repeats; none where they differ."""
    found = set(example.get("steps/language_instruction", []))
    return found.pop().decode() if len(found) == 1 else ""


def _read(listed: Listed, cameras: dict[str, list[int]], state: list[str], action: str, widths: dict[str, int]) -> Episode:
    shard, offset, length = listed.key
    where = f"{shard.parent}/{listed.name}"
    example = read_record(shard, offset, length)
    actions = _numbers(example, f"steps/{action}", widths[action], where)
    count = len(actions)
    if count < 2:
        raise UserError(f"{where}: {count} steps, expected two at least; drop the episode")
    states = [_numbers(example, f"steps/observation/{name}", widths[name], where) for name in state]
    reward = _numbers(example, "steps/reward", 1, where) if "steps/reward" in example else np.zeros((count, 1))
    if len(reward) != count:
        raise UserError(f"{where}, reward: {len(reward)} numbers for {count} steps; drop the episode")
    frames = {}
    for camera, (height, width) in cameras.items():
        encoded = example.get(f"steps/observation/{camera}", [])
        if len(encoded) != count:
            raise UserError(f"{where}, {camera}: {len(encoded)} pictures for {count} steps; drop the episode")
        frames[camera] = np.stack([decoded(data, height, width, f"{where}, {camera}, step {t}") for t, data in enumerate(encoded)])
    for name, values in zip(state, states):
        if len(values) != count:
            raise UserError(f"{where}, {name}: {len(values)} rows for {count} steps; drop the episode")
        check_finite(where, name, values)
    check_finite(where, action, actions)
    return Episode(
        frames=frames,
        states=np.concatenate(states, 1).astype(np.float32),
        actions=actions[:-1].astype(np.float32),
        success=so_far(rewarded(where, "reward", reward), count),
        instruction=listed.instruction,
        info={"task": listed.instruction, "source": "rlds"},
    )


def _numbers(example: dict, name: str, width: int, where: str) -> np.ndarray:
    """(T, width)"""
    values = example.get(name)
    if not isinstance(values, np.ndarray) or len(values) % width:
        found = "none" if values is None else len(values)
        raise UserError(f"{where}, {name}: {found} numbers, expected {width} for each step; is features.json of another version?")
    return values.reshape(-1, width)
