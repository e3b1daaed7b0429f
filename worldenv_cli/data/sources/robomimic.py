"""robomimic's HDF5 demonstrations: `obs[t]` is seen before `actions[t]` and `next_obs[t]` after it; pictures are upright."""

from pathlib import Path

import numpy as np

from ...errors import UserError
from ..layout import Episode, check_finite
from ..outcomes import rewarded, so_far
from . import hdf5
from .geometry import from_camera_to_world
from .source import UPRIGHT, Listed, Source, SourceConfig, validated

STATE = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
ARM = ["dx", "dy", "dz", "drx", "dry", "drz"]


def open_robomimic(path: Path, config: SourceConfig) -> Source:
    with hdf5.opened(path) as file:
        data = hdf5.group(file, hdf5.DEMOS, str(path))
        settings = validated(hdf5.EnvironmentArguments, hdf5.json_attribute(data, "env_args", str(path)), f"{path}, env_args")
        demos = _filtered(file, path, config.filter_key)
        if not demos:
            raise UserError(f"{path}: no demonstrations, expected data/demo_0 and so on; check the path and --filter-key")
        episodes = [Listed(f"{path.name}: {demo}", config.instruction or "", _steps(data, demo, path, config), (path, demo)) for demo in demos]
        first = data[demos[0]]
        where = f"{path}: {demos[0]}"
        observations = hdf5.group(first, "obs", where)
        cameras = {name: [int(side) for side in hdf5.shape(observations, name, where, 4)[1:3]] for name in observations if name.endswith("_image")}
        state = list(config.state or STATE)
        names = [
            f"{name.removeprefix('robot0_')}_{i}" for name in state for i in range(int(np.prod(hdf5.group(observations, name, where).shape[1:])))
        ]
        size = hdf5.shape(first, config.action or "actions", where, 2)[1]
        known = hdf5.json_attribute(first, "camera_info", where) if "camera_info" in first.attrs else {}
    kind = settings.env_kwargs.controller_configs.get("type", "unknown")
    return Source(
        format="robomimic",
        path=path,
        control_hz=settings.env_kwargs.control_freq,
        robot=settings.robot,
        state_names=names,
        action_names=[*ARM, "gripper"] if size == 7 else [f"action_{i}" for i in range(size)],
        action={
            "meaning": f"input of {settings.env_name}'s controller ({kind}); gripper -1 opens, +1 closes",
            "unit": settings.unit(size),
        },
        cameras={name.removesuffix("_image"): {"orientation": UPRIGHT, "size": size, **_geometry(known, name)} for name, size in cameras.items()},
        episodes=episodes,
        read=lambda listed, chosen: _read(listed, [f"{name}_image" for name in chosen], state, config),
        outcome="rewards above 0",
        limits=([-1.0] * size, [1.0] * size),
    )


def _steps(data, demo: str, path: Path, config: SourceConfig) -> int:
    return hdf5.shape(hdf5.group(data, demo, str(path)), config.action or "actions", f"{path}: {demo}", 2)[0]


def _geometry(known: dict, camera: str) -> dict:
    """Intrinsics and extrinsics, where the file has them; those of a camera on the hand change with the hand."""
    found = known.get(camera.removesuffix("_image"))
    if "hand" in camera or not isinstance(found, dict) or not {"intrinsics", "extrinsics"} <= found.keys():
        return {}
    return {"intrinsics": found["intrinsics"], "extrinsics": from_camera_to_world(found["extrinsics"])}


def _filtered(file, path: Path, key: str | None) -> list[str]:
    demos = hdf5.demos(file, path)
    if key is None:
        return demos
    masks = hdf5.group(file, "mask", str(path))
    if key not in masks:
        raise UserError(f"{path}: no filter key {key!r}, found {sorted(masks)}; choose one of them")
    wanted = {name.decode() if isinstance(name, bytes) else str(name) for name in masks[key][()]}
    missing = sorted(wanted - set(demos))
    if missing:
        raise UserError(f"{path}, mask/{key}: names {missing[0]}, which is not in {hdf5.DEMOS}; copy or download the file again")
    return [demo for demo in demos if demo in wanted]


def _read(listed: Listed, cameras: list[str], state: list[str], config: SourceConfig) -> Episode:
    path, demo = listed.key
    where = f"{path}: {demo}"
    with hdf5.opened(path) as file:
        data = hdf5.group(hdf5.group(file, hdf5.DEMOS, str(path)), demo, str(path))
        actions, rewards = hdf5.table(data, config.action or "actions", where), hdf5.array(data, "rewards", where)
        before, after = hdf5.group(data, "obs", where), hdf5.group(data, "next_obs", where) if "next_obs" in data else None
        frames = {name: _with_last(before, after, name, where) for name in cameras}
        states = [_with_last(before, after, name, where) for name in state]
    if rewards.ndim != 1:
        raise UserError(f"{where}, rewards: shape {rewards.shape}, expected one number for each action; drop the demonstration")
    steps = hdf5.same_length(where, {"actions": actions, "rewards": rewards})
    if not steps:
        raise UserError(f"{where}: 0 steps, expected one at least; drop the demonstration")
    shown = hdf5.same_length(where, frames | dict(zip(state, states)))
    if shown - (after is not None) != steps:
        raise UserError(f"{where}: {shown - (after is not None)} observations for {steps} actions; drop the demonstration")
    played = shown - 1  # without next_obs nobody saw what the last action led to
    if played < 1:
        raise UserError(f"{where}: {steps} steps, expected one at least with a picture after it; drop the demonstration")
    for name, values in {"actions": actions, **dict(zip(state, states))}.items():
        check_finite(where, name, values.reshape(len(values), -1))
    return Episode(
        frames={name.removesuffix("_image"): values for name, values in frames.items()},
        states=np.concatenate([values.reshape(shown, -1) for values in states], 1).astype(np.float32),
        actions=actions[:played].astype(np.float32),
        success=so_far(rewarded(where, "rewards", rewards), shown),
        instruction=listed.instruction,
        info={"task": listed.instruction, "source": "robomimic"},
    )


def _with_last(before, after, name: str, where: str) -> np.ndarray:
    values = hdf5.pictures(before, name, where) if name.endswith("_image") else hdf5.array(before, name, where)
    if after is None or not len(values):
        return values
    following = hdf5.array(after, name, where)
    if following.shape != values.shape:
        raise UserError(f"{where}, {name}: {following.shape} in next_obs, but {values.shape} in obs; drop the demonstration")
    return np.concatenate([values, following[-1:]])
