"""RLDS datasets as tensorflow-datasets writes them (`<name>/<version>/` with features.json and TFRecord shards), without tensorflow.

A record is an episode; what its steps hold lies end to end in flat lists, cut by the shapes of features.json. Observation t is seen before
action t, so the last action, whose outcome nobody saw, is left out. Rate, robot and orientation are not recorded; LIBERO's sets are known.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import UserError
from ..layout import Episode, check_finite
from ..pictures import decoded, room_for
from . import frames
from .demonstrations import BEYOND, OFTEN, left_out
from .libero import ACTION_NAMES, LIBEROS, MEANING
from .rewards import Outcomes, by_rewards
from .rlds_features import Feature, numbers, step_features
from .rlds_files import episodes_that_are_missing, shards_of, version_of
from .source import LARGEST, MIRRORED, Listed, Source, SourceConfig
from .tfrecord import Values, read_record, records

INSTRUCTIONS = ("language_instruction", "natural_language_instruction", "instruction", "task")
EVERY_STEP = ("is_first", "is_last", "is_terminal", "reward")  # flags that tensorflow-datasets' episodes have for each step
LIBERO_NAME = re.compile(r"libero|liber_o10", re.IGNORECASE)  # the second is OpenVLA's own spelling


@dataclass(frozen=True)
class _Columns:
    """Which of the record's names are read, and as what."""

    features: dict[str, Feature]
    state: list[str]
    action: list[str]
    cameras: dict[str, str]  # {camera: name}
    sizes: dict[str, list[int]]
    instructions: list[str]


def open_rlds(path: Path, config: SourceConfig) -> Source:
    folder, notes = version_of(path)
    features = step_features(folder)
    shards = shards_of(folder, config.filter_key, notes)
    state = [_numbers_called(name, ("observation/", ""), features, folder, "--state") for name in config.state or ("state",)]
    action = [_numbers_called(name, ("", "action/"), features, folder, "--action") for name in (config.action or "action").split(",")]
    cameras, aside = _cameras(features)
    missing: dict[str, str] = {}
    instructions = [name for wanted in INSTRUCTIONS for name in features if name.rpartition("/")[2] == wanted and features[name].kind == "text"]
    columns = _Columns(features, state, action, cameras, {}, instructions)
    episodes, rewards, beyond, unusable = _listed(shards, columns, config)
    if not episodes:
        raise UserError(f"{folder}: no episodes{f': {unusable[0]}' if unusable else ' in its shards'}; expected one at least")
    _measure_cameras(columns, missing, episodes[0])
    size = sum(features[name].width for name in action)
    libero = _is_libero(folder, shards, columns)
    inputs = libero and beyond <= OFTEN
    outcomes = _outcomes(config, features, rewards)
    notes += aside + _notes(folder, shards, episodes, libero, inputs)
    return Source(
        format="rlds",
        path=folder,
        control_hz=LIBEROS["control_hz"] if libero else None,
        robot=LIBEROS["robot"] if libero else None,
        state_names=[f"{_short(name)}_{i}" for name in state for i in range(features[name].width)],
        action_names=ACTION_NAMES if inputs else [f"{_short(name)}_{i}" for name in action for i in range(features[name].width)],
        action={"meaning": MEANING if inputs else f"{','.join(action)}, as recorded", "unit": LIBEROS["unit"] if inputs else None},
        cameras={camera: {"orientation": MIRRORED if libero else None, "size": columns.sizes[camera]} for camera in columns.cameras},
        outcome=outcomes.told,
        episodes=episodes,
        read=lambda listed, cameras: _read(listed, cameras, columns, outcomes),
        limits=([-1.0] * size, [1.0] * size) if inputs else None,
        gripper={"dimension": size - 1, "closes": 1} if inputs else None,
        unusable=unusable,
        unusable_cameras=missing,
        notes=notes,
    )


# What is read


def _numbers_called(name: str, places: Sequence[str], features: dict[str, Feature], folder: Path, option: str) -> str:
    found = next((place + name for place in places if place + name in features and features[place + name].kind == "numbers"), None)
    if found is None:
        known = ", ".join(f"{name} {list(feature.shape)}" for name, feature in sorted(features.items()) if feature.kind == "numbers")
        parts = [path.removeprefix(f"{name}/") for path in features if path.startswith(f"{name}/") and features[path].kind == "numbers"]
        told = f"it has parts: {option} {','.join(parts)}" if parts else f"choose with {option} a,b"
        raise UserError(f"{folder / 'features.json'}: no numbers called {name!r}, found {known[:600]}; {told}")
    if features[found].width is None:
        raise UserError(f"{folder / 'features.json'}: {found} has {list(features[found].shape)} numbers, expected a fixed size; choose with {option}")
    return found


def _cameras(features: dict[str, Feature]) -> tuple[dict[str, str], list[str]]:
    """({camera: name in a record}, one line for each that is none of colours); pictures can be stored as such, or as plain numbers."""
    cameras, aside = {}, []
    for name, feature in features.items():
        pixels = feature.kind == "numbers" and len(feature.shape) == 3 and feature.shape[-1] in (3, 4) and feature.dtype == "uint8"
        if feature.kind == "picture" or pixels:
            camera = _short(name)
            camera = camera if camera not in cameras else name.removeprefix("observation/").replace("/", ".")
            channels = feature.shape[-1] if len(feature.shape) == 3 else None
            if frames.no_picture(name):
                aside.append(f"{camera} is left aside: {frames.no_picture(name)}")
            elif feature.dtype != "uint8" or channels not in (1, 3, 4) or any(side is not None and side > LARGEST for side in feature.shape[:2]):
                aside.append(f"{camera} is left aside: {list(feature.shape)} of {feature.dtype}, no colours of eight bits")
            else:
                cameras[camera] = name
    return cameras, aside


def _measure_cameras(columns: _Columns, missing: dict[str, str], first: Listed) -> None:
    """[H, W] of each camera, from its first picture where features.json leaves them open; cameras without pictures are no cameras."""
    example = None
    for camera, name in list(columns.cameras.items()):
        declared = columns.features[name].shape[:2]
        if None not in declared:
            columns.sizes[camera] = list(declared)
            continue
        example = example or read_record(*first.key)
        try:
            with Image.open(io.BytesIO(example[name_in_record(name)][0]), formats=("PNG", "JPEG")) as picture:
                columns.sizes[camera] = [picture.height, picture.width]
        except (KeyError, IndexError, TypeError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            missing[camera] = f"no whole picture in {first.name}"
            del columns.cameras[camera]
    if not columns.cameras:
        why = f" ({missing})" if missing else ""
        raise UserError(f"{first.key[0].parent}: no pictures in it, which a dataset needs{why}; is it another version?")


def name_in_record(name: str) -> str:
    return f"steps/{name}"


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _listed(shards: Sequence[Path], columns: _Columns, config: SourceConfig) -> tuple[list[Listed], list[np.ndarray], float, list[str]]:
    """(the episodes, their rewards, the share of steps with an action beyond [-1, 1], what was left out)."""
    episodes, rewards, unusable, beyond, steps = [], [], [], 0, 0
    for shard in shards:
        with left_out(unusable, config.skip_bad):
            for number, (offset, length) in enumerate(records(shard)):
                with left_out(unusable, config.skip_bad):
                    name = f"{shard.name}: episode {number}"
                    example = read_record(shard, offset, length)
                    actions = _action(example, columns, f"{shard.parent}/{name}")
                    _state(example, columns, f"{shard.parent}/{name}")
                    instruction, problem = _instruction(example, columns, config)
                    episodes.append(Listed(name, instruction, len(actions), (shard, offset, length), problem))
                    rewards += _rewards(example, f"{shard.parent}/{name}")
                    beyond += int((np.abs(actions) > BEYOND).any(1).sum())
                    steps += len(actions)
    return episodes, rewards, beyond / max(1, steps), unusable


def _rewards(example: dict[str, Values], where: str) -> list[np.ndarray]:
    found = example.get("steps/reward")
    if isinstance(found, list) and found:
        raise UserError(f"{where}, reward: text, expected numbers; tell outcomes with --success")
    return [] if found is None else [np.asarray(found)]


def _action(example: dict[str, Values], columns: _Columns, where: str) -> np.ndarray:
    return _side_by_side(example, columns.action, columns.features, where)


def _state(example: dict[str, Values], columns: _Columns, where: str) -> np.ndarray:
    return _side_by_side(example, columns.state, columns.features, where)


def _side_by_side(example: dict[str, Values], names: Sequence[str], features: dict[str, Feature], where: str) -> np.ndarray:
    """(T, D) float32"""
    parts = {name: numbers(example.get(name_in_record(name)), features[name], f"{where}, {name}") for name in names}
    if len({len(values) for values in parts.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in parts.items())
        raise UserError(f"{where}: steps differ ({lengths}); leave the episode out")
    return np.concatenate(list(parts.values()), 1).astype(np.float32)


def _instruction(example: dict[str, Values], columns: _Columns, config: SourceConfig) -> tuple[str, str]:
    """(the one that every step repeats, what is wrong with it): none where they differ or are empty."""
    if config.instruction:
        return config.instruction, ""
    for name in columns.instructions:
        values = example.get(name_in_record(name))
        try:
            texts = list(dict.fromkeys(value.decode() for value in values)) if isinstance(values, list) else []
        except UnicodeDecodeError:
            return "", f"{name} is not text in UTF-8; give an instruction: --instruction 'lift the cube'"
        if len(texts) > 1:
            return "", f"{len(texts)} instructions in one episode, such as {texts[0]!r} and {texts[1]!r}; give one: --instruction 'lift the cube'"
        if texts and texts[0].strip():
            return texts[0], ""
    return "", ""


def _is_libero(folder: Path, shards: Sequence[Path], columns: _Columns) -> bool:
    """One of LIBERO's sets, by its name and by what it holds: then its rate, robot, orientation and action are LIBERO's."""
    names = [folder.parent.name, *(shard.name for shard in shards[:1])]
    widths = {name: feature.width for name, feature in columns.features.items()}
    shaped = columns.action == ["action"] and widths["action"] == len(ACTION_NAMES) and widths.get("observation/state") == 8
    return shaped and {"image", "wrist_image"} <= set(columns.cameras) and any(LIBERO_NAME.match(name) for name in names)


def _outcomes(config: SourceConfig, features: dict[str, Feature], rewards: Sequence[np.ndarray]) -> Outcomes:
    if config.success is not None:
        if config.success not in features:
            raise UserError(f"--success {config.success}: no such column, found {sorted(features)}; choose one of them, or give a file of labels")
        return Outcomes(f"recorded ({config.success}, named by --success)", config.success, is_flag=True)
    return by_rewards("reward", rewards, zeros_count=False)


def _notes(folder: Path, shards: Sequence[Path], episodes: Sequence[Listed], libero: bool, inputs: bool) -> list[str]:
    if libero:
        notes = [f"LIBERO's by its name: {LIBEROS['control_hz']} Hz, {LIBEROS['robot']}, pictures {MIRRORED}"]
        if not inputs:
            notes.append("most actions lie beyond [-1, 1]: they are no inputs of LIBERO's controller, and taken as recorded")
    else:
        notes = ["rate, robot, orientation and the gripper's direction are not recorded in RLDS datasets"]
    return notes + episodes_that_are_missing(folder, shards, [listed.key[0] for listed in episodes])


# One episode


def _read(listed: Listed, cameras: Sequence[str], columns: _Columns, outcomes: Outcomes) -> Episode:
    shard, offset, length = listed.key
    where = f"{shard.parent}/{listed.name}"
    example = read_record(shard, offset, length)
    actions, states = _action(example, columns, where), _state(example, columns, where)
    count = len(actions)
    if count < 2:
        raise UserError(f"{where}: {count} steps, expected two at least, before and after an action; leave it out")
    told = example.get(name_in_record(outcomes.column)) if outcomes.column else None
    for name, values in {"state": states, **{name: example.get(name_in_record(name)) for name in (*EVERY_STEP, *columns.instructions)}}.items():
        if values is not None and len(values) != count:
            raise UserError(f"{where}, {name}: {len(values)} rows for {count} steps; leave the episode out")
    last = actions[-1] if np.isfinite(actions[-1]).all() else None  # RLDS does not define the action of an episode's last step
    check_finite(where, ",".join(columns.action), actions[:-1])
    check_finite(where, "state", states)
    success, info = outcomes.of(where, None if told is None else np.asarray(told), count)
    return Episode(
        frames={camera: _pictures(example, camera, columns, count, where) for camera in cameras},
        states=states,
        actions=actions[:-1],
        success=success,
        instruction=listed.instruction,
        info={"task": listed.instruction, "source": "rlds", **info},
        last_action=last,
    )


def _pictures(example: dict[str, Values], camera: str, columns: _Columns, count: int, where: str) -> np.ndarray:
    """(T, H, W, 3) uint8"""
    name, (height, width) = columns.cameras[camera], columns.sizes[camera]
    feature, found = columns.features[name], example.get(name_in_record(name))
    if feature.kind == "numbers":
        values = numbers(found, feature, f"{where}, {camera}")
        if len(values) != count:
            raise UserError(f"{where}, {camera}: {len(values)} pictures for {count} steps; leave the episode out")
        return frames.colours(values.reshape(count, *feature.shape), f"{where}, {camera}")
    encoded = found if isinstance(found, list) else []
    if len(encoded) != count:
        raise UserError(f"{where}, {camera}: {len(encoded)} pictures for {count} steps; leave the episode out, or the camera with --cameras")
    frames.check_unpacked(count * height * width * 3, sum(map(len, encoded)), f"{where}, {camera}")
    shown = room_for(f"{where}, {camera}", count, height, width)
    for step, data in enumerate(encoded):
        shown[step] = decoded(data, height, width, f"{where}, {camera}, step {step}")
    return shown
