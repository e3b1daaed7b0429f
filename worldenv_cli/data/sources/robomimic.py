"""robomimic's HDF5 demonstrations: `obs[t]` is seen before `actions[t]` and `next_obs[t]` after it; robosuite's pictures are upright."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..layout import Episode
from . import demonstrations, frames, hdf5
from .demonstrations import Demonstration, action_columns, are_inputs, left_out
from .geometry import robosuite_camera
from .rewards import Outcomes, by_rewards
from .robosuite import Controller, EnvironmentArguments
from .source import UPRIGHT, Listed, Source, SourceConfig, validated

ARM = re.compile(r"(robot\d+_(?:right_|left_)?)(eef_pos|eef_quat|gripper_qpos)")  # what is known of each arm
PARTS = ("eef_pos", "eef_quat", "gripper_qpos")
MAKE_PICTURES = "python dataset_states_to_obs.py --dataset {} --output_name image.hdf5 --done_mode 2 --camera_names agentview robot0_eye_in_hand"


@dataclass
class _Demo(Demonstration):
    instruction: str
    settings: EnvironmentArguments

    @property
    def schema(self) -> dict[str, object]:
        """What has to be alike in several files that are read as one source."""
        controller = self.settings.controller(self.action_size)
        return {
            "state": self.state_names,
            "numbers of action": self.action_size,
            "control_freq": self.settings.env_kwargs.control_freq,
            "robots": self.settings.robots,
            "cameras": self.cameras,
            "controller": controller and (controller.arms, controller.absolute),
        }


def open_robomimic(path: Path, config: SourceConfig) -> Source:
    """A file, or a folder of files of one kind."""
    unusable: list[str] = []
    demos, notes = _listed(path, config, unusable)
    first = demos[0]
    controller = _controller(demos, config)
    outcomes = demonstrations.named_by_user(config) or _outcomes(demos)
    names, missing = demonstrations.common_cameras(demos)
    return Source(
        format="robomimic",
        path=path,
        control_hz=first.settings.env_kwargs.control_freq,
        robot=first.settings.robot,
        state_names=first.state_names,
        action_names=controller.names if controller else _action_names(config, first.action_size),
        action={"meaning": _meaning(first.settings, controller, config), "unit": controller.unit if controller else None}
        | ({"absolute": True} if controller and controller.absolute else {}),
        cameras=_cameras(first, names),
        episodes=[Listed(f"{demo.file.name}: {demo.name}", demo.instruction, demo.steps, (demo,)) for demo in demos],
        read=lambda listed, cameras: _read(listed, cameras, config, outcomes),
        outcome=outcomes.told,
        limits=controller.limits if controller else None,
        gripper={"dimension": 6, "closes": 1} if controller and first.action_size == 7 else None,
        unusable=unusable,
        unusable_cameras={_camera(name): why for name, why in missing.items()},
        notes=notes + _notes(demos, controller, config),
    )


def _listed(path: Path, config: SourceConfig, unusable: list[str]) -> tuple[list[_Demo], list[str]]:
    """(the demonstrations, notes). Of a folder, files without pictures are passed over where others have some."""
    found: dict[Path, list[_Demo]] = {}
    bare: list[Path] = []
    for file in hdf5.files_of(path):
        with left_out(unusable, config.skip_bad):
            demos = _list_file(file, config, unusable)
            if any(demo.cameras for demo in demos):
                found[file] = demos
            elif demos:
                bare.append(file)
    if not found and bare:
        raise UserError(f"{bare[0]}: no pictures in it, which a dataset needs; let robomimic make them: {MAKE_PICTURES.format(bare[0].name)}")
    if not found:
        why = f": {unusable[0]}" if unusable else ", expected data/demo_0 and so on; check the path and --filter-key"
        raise UserError(f"{path}: no demonstrations{why}")
    first = next(iter(found.values()))[0]
    for file, demos in found.items():
        other = next((field for field, value in first.schema.items() if demos[0].schema[field] != value), None)
        if other:
            there = sorted(file.relative_to(path).as_posix() for file in found)
            raise UserError(f"{path}: {other} of {file.name} is not that of {first.file.name}, expected files of one kind; give one of {there}")
    notes = [f"{file.name} is left aside: no pictures in it" for file in bare]
    if len(found) > 1:
        notes.append(f"{len(found)} files of one kind: {', '.join(sorted(file.name for file in found))}")
    demos = demonstrations.alike([demo for demos in found.values() for demo in demos], unusable, config.skip_bad)
    return demonstrations.with_cameras(demos, unusable, config.skip_bad), notes


def _list_file(path: Path, config: SourceConfig, unusable: list[str]) -> list[_Demo]:
    where, demos = str(path), []
    with hdf5.opened(path) as file:
        data = hdf5.group(file, hdf5.DEMOS, where)
        arguments = hdf5.json_attribute(data, "env_args", where)
        settings = validated(EnvironmentArguments, arguments or {}, f"{where}, env_args")
        for name in _filtered(file, data, path, config.filter_key):
            with left_out(unusable, config.skip_bad):
                demos.append(_list_demo(path, name, hdf5.group(data, name, where), settings, config))
    return demos


def _filtered(file, data, path: Path, key: str | None) -> list[str]:
    """The demonstrations of a mask, by number."""
    where = str(path)
    demos = hdf5.demos(data, where)
    if key is None:
        return demos
    masks = hdf5.group(file, "mask", where)
    if not hdf5.has(masks, key, where):
        raise UserError(f"{path}: no filter key {key!r}, found {hdf5.names(masks, where)}; choose one of them")
    members = set(hdf5.words(masks, key, f"{path}, mask"))
    missing = sorted(members - set(demos))
    if missing:
        raise UserError(
            f"{path}, mask/{key}: names {missing[0]!r}, which is not in {hdf5.DEMOS}; make the mask again, or choose another --filter-key"
        )
    return [demo for demo in demos if demo in members]


def _list_demo(path: Path, name: str, demo, settings: EnvironmentArguments, config: SourceConfig) -> _Demo:
    where = f"{path}: {name}"
    observations = hdf5.group(demo, "obs", where) if hdf5.has(demo, "obs", where) else None
    cameras = {} if observations is None else demonstrations.colour_names(observations, where, ("_image", "_rgb")) or _unnamed(observations, where)
    state = _state(observations, settings, config, where) if cameras else []
    return _Demo(
        file=path,
        name=name,
        **demonstrations.numbers(demo, config, where),
        state=state,
        state_names=_state_names(observations, state, where) if cameras else [],
        cameras=cameras,
        instruction=config.instruction or _instruction(demo, where),
        settings=settings,
    )


def _instruction(demo, where: str) -> str:
    """RoboCasa writes one to every demonstration; robomimic's own sets are of one task and do not say which."""
    return str((hdf5.json_attribute(demo, "ep_meta", where) or {}).get("lang") or "")


def _unnamed(observations, where: str) -> dict[str, list[int]]:
    """Arrays that look like pictures, in files where none is called so; what cannot be looked at was not asked for."""
    cameras = {}
    for name in hdf5.names(observations, where):
        with suppress(UserError):
            array = hdf5.dataset(observations, name, where)
            if frames.looks_like_pictures(array.shape, array.dtype) and not frames.no_picture(name):
                cameras[name] = frames.size_of(array.shape, where)
    return cameras


def _camera(name: str) -> str:
    return name.removesuffix("_image").removesuffix("_rgb")


def _state(observations, settings: EnvironmentArguments, config: SourceConfig, where: str) -> list[str]:
    """The arrays that make up the state: what is asked for, else every arm's pose and gripper, arm after arm."""
    if config.state:
        return list(config.state)
    names = [name for name in hdf5.names(observations, where) if ARM.fullmatch(name)]
    arms = sorted({ARM.fullmatch(name)[1] for name in names})
    state = [arm + part for arm in arms for part in PARTS if arm + part in names]
    robots = {re.match(r"robot\d+", arm)[0] for arm in arms}
    if not state or len(robots) < len(settings.robots):
        told = f"the hand of {len(robots)} of {max(1, len(settings.robots))} robots (robot0_eef_pos ...)"
        raise UserError(f"{where}: holds {told} among {hdf5.names(observations, where)[:16]}; choose the arrays of the state with --state a,b")
    return state


def _state_names(observations, state: Sequence[str], where: str) -> list[str]:
    """A name for each number; robot0 is not named where it is the only one."""
    widths = demonstrations.widths(observations, state, where)
    alone = not any(re.match(r"robot[1-9]", name) for name in hdf5.names(observations, where))
    return [f"{name.removeprefix('robot0_') if alone else name}_{i}" for name in state for i in range(widths[name])]


def _controller(demos: Sequence[_Demo], config: SourceConfig) -> Controller | None:
    """What took the actions; None where they are not its input: other columns, or numbers that lie beyond it."""
    controller = demos[0].settings.controller(demos[0].action_size)
    if action_columns(config) != [demonstrations.ACTION] or controller is None or (not controller.absolute and not are_inputs(demos)):
        return None
    return controller


def _action_names(config: SourceConfig, size: int) -> list[str]:
    columns = action_columns(config)
    name = columns[0].rpartition("/")[2] if len(columns) == 1 and columns != [demonstrations.ACTION] else "action"
    return [f"{name}_{i}" for i in range(size)]


def _meaning(settings: EnvironmentArguments, controller: Controller | None, config: SourceConfig) -> str:
    if controller is None:
        return f"{config.action or demonstrations.ACTION}, as recorded"
    task, kind = settings.env_name or "the environment", controller.arms[0].get("type")
    if controller.absolute:
        return f"absolute poses for {task}'s controller ({kind}), in metres and radians; gripper -1 opens, +1 closes"
    return f"input of {task}'s controller ({kind}); gripper -1 opens, +1 closes"


def _outcomes(demos: Sequence[_Demo]) -> Outcomes:
    rewards = [demo.rewards for demo in demos if demo.rewards is not None]
    return by_rewards("rewards", rewards, zeros_count=demos[0].settings.is_robosuite)


def _cameras(first: _Demo, names: Sequence[str]) -> dict[str, dict]:
    """{camera: its description}"""
    with hdf5.opened(first.file) as file:
        demo = hdf5.group(hdf5.group(file, hdf5.DEMOS, first.where), first.name, first.where)
        known = hdf5.json_attribute(demo, "camera_info", first.where) or {}
    cameras = {}
    for name in names:
        camera, pose = _camera(name), {}
        if known.get(camera) is not None and "hand" not in camera:  # where a camera on the hand stands changes with the hand
            pose = robosuite_camera(known[camera], f"{first.where}, camera_info, {camera}")
        cameras[camera] = {"orientation": UPRIGHT if first.settings.is_robosuite else None, "size": first.cameras[name], **pose}
    return cameras


def _notes(demos: Sequence[_Demo], controller: Controller | None, config: SourceConfig) -> list[str]:
    first = demos[0]
    with hdf5.opened(first.file) as file:
        notes = demonstrations.other_pictures(hdf5.group(file, f"{hdf5.DEMOS}/{first.name}/obs", first.where), first.where)
    if not first.settings.is_robosuite:
        notes.append("env_args names no controller of robosuite's: orientation and gripper are unknown, and what the action's numbers mean")
    if action_columns(config) == [demonstrations.ACTION] and controller is None and not are_inputs(demos):
        notes.append("most actions lie beyond [-1, 1]: they are no normalized inputs of a controller, and taken as recorded")
    if config.state is None and len(first.settings.robots) > 1:
        notes.append(f"{len(first.settings.robots)} robots: the state holds {', '.join(first.state)}")
    return notes


def _read(listed: Listed, cameras: Sequence[str], config: SourceConfig, outcomes: Outcomes) -> Episode:
    (found,) = listed.key
    where, names = found.where, {_camera(name): name for name in found.cameras}
    with hdf5.opened(found.file) as file:
        demo = hdf5.group(hdf5.group(file, hdf5.DEMOS, where), found.name, where)
        actions = hdf5.rows(demo, action_columns(config), where)
        before = hdf5.group(demo, "obs", where)
        after = hdf5.group(demo, "next_obs", where) if hdf5.has(demo, "next_obs", where) else None
        shown = demonstrations.read_pictures({camera: _with_last(before, after, names[camera], where) for camera in cameras}, where)
        states = {name: _with_last(before, after, name, where) for name in found.state}
        told = demonstrations.outcome_column(demo, outcomes, config, where)
    steps, observed = hdf5.same_length(where, {"actions": actions} | told), hdf5.same_length(where, shown | states)
    played = observed - 1  # without next_obs nobody saw what the last action led to
    if played < 1:
        raise UserError(f"{where}: {steps} steps, expected one at least with a picture after it; leave it out")
    if observed - (after is not None) != steps:
        raise UserError(f"{where}: {observed - (after is not None)} observations for {steps} actions; convert it again or leave it out")
    state = np.concatenate([values.reshape(observed, -1) for values in states.values()], 1)
    actions, state = demonstrations.as_float32(where, "actions", actions), demonstrations.as_float32(where, "state", state)
    success, info = outcomes.of(where, told.get(outcomes.column), observed)
    return Episode(
        frames=shown,
        states=state,
        actions=actions[:played],
        success=success,
        instruction=listed.instruction,
        info={"task": listed.instruction, "source": "robomimic", **info},
        last_action=actions[-1] if after is None else None,
    )


def _with_last(before, after, name: str, where: str) -> np.ndarray:
    """(T + 1, ...) where what the last action led to is kept, else (T, ...)."""
    values = hdf5.array(before, name, where)
    if after is None or not len(values):
        return values
    following = hdf5.array(after, name, f"{where}, next_obs")
    if following.shape != values.shape:
        raise UserError(f"{where}, {name}: {following.shape} in next_obs, but {values.shape} in obs; convert it again or leave it out")
    return np.concatenate([values, following[-1:]])
