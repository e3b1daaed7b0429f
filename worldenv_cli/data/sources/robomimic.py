"""robomimic's HDF5 demonstrations: `obs[t]` is seen before `actions[t]` and `next_obs[t]` after it; robosuite's pictures are upright."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..layout import Episode, check_finite
from . import frames, hdf5
from .geometry import robosuite_camera
from .listing import left_out
from .rewards import Outcomes, by_rewards
from .robosuite import Controller, EnvironmentArguments
from .source import UPRIGHT, Listed, Source, SourceConfig, validated

ACTION = "actions"
ARM = re.compile(r"(robot\d+_(?:right_|left_)?)(eef_pos|eef_quat|gripper_qpos)")  # what is known of each arm
PARTS = ("eef_pos", "eef_quat", "gripper_qpos")
MAKE_PICTURES = "python dataset_states_to_obs.py --dataset {} --output_name image.hdf5 --done_mode 2 --camera_names agentview robot0_eye_in_hand"
LARGEST_STATE = 2**16  # names of one array's numbers that are made before the array itself was measured


@dataclass
class _Demo:
    """What is known of one demonstration before its pictures are read."""

    file: Path
    name: str
    steps: int
    instruction: str
    cameras: dict[str, list[int]]  # {name in the file: [H, W]}
    no_cameras: dict[str, str]  # {name: why it cannot be taken}
    state: list[str]
    state_names: list[str]
    action_size: int
    beyond: float  # share of the steps with a number beyond the limits of a normalized input
    rewards: np.ndarray | None
    settings: EnvironmentArguments

    @property
    def where(self) -> str:
        return f"{self.file}: {self.name}"

    @property
    def schema(self) -> dict[str, object]:
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
    demos, notes, unusable = _listed(path, config)
    first = demos[0]
    controller = _controller(demos, config)
    outcomes = _outcomes(config, demos)
    cameras, missing = _cameras(demos)
    return Source(
        format="robomimic",
        path=path,
        control_hz=first.settings.env_kwargs.control_freq,
        robot=first.settings.robot,
        state_names=first.state_names,
        action_names=controller.names if controller else _action_names(config, first.action_size),
        action={"meaning": _meaning(demos, controller, config), "unit": controller.unit if controller else None},
        cameras=cameras,
        outcome=outcomes.told,
        episodes=[Listed(f"{demo.file.name}: {demo.name}", demo.instruction, demo.steps, (demo,)) for demo in demos],
        read=lambda listed, cameras: _read(listed, cameras, config, outcomes),
        limits=controller.limits if controller else None,
        gripper={"dimension": 6, "closes": 1} if controller and first.action_size == 7 else None,
        unusable=unusable,
        unusable_cameras=missing,
        notes=notes + _notes(demos, controller, config),
    )


def _listed(path: Path, config: SourceConfig) -> tuple[list[_Demo], list[str], list[str]]:
    """(the demonstrations, notes, what was left out). Of a folder, files without pictures are passed over where others have some."""
    files, unusable, bare = hdf5.files_of(path), [], []
    found: dict[Path, list[_Demo]] = {}
    for file in files:
        with left_out(unusable, config.skip_bad):
            demos = _list_file(file, config, unusable)
            if demos and not any(demo.cameras for demo in demos):
                bare.append(file)
            elif demos:
                found[file] = demos
    if not found:
        if bare:
            raise UserError(f"{bare[0]}: no pictures in it, which a dataset needs; let robomimic make them: {MAKE_PICTURES.format(bare[0].name)}")
        why = f": {unusable[0]}" if unusable else ", expected data/demo_0 and so on; check the path and --filter-key"
        raise UserError(f"{path}: no demonstrations{why}")
    first = next(iter(found.values()))[0]
    for file, demos in found.items():
        field = next((field for field, value in first.schema.items() if demos[0].schema[field] != value), None)
        if field:
            there = sorted(file.relative_to(path).as_posix() for file in found)
            raise UserError(f"{path}: {field} of {file.name} is not that of {first.file.name}, expected files of one kind; give one of {there}")
    notes = [f"{file.name}: left aside, no pictures in it" for file in bare]
    if len(found) > 1:
        notes.append(f"{len(found)} files of one kind: {', '.join(sorted(file.name for file in found))}")
    kept = [demo for demos in found.values() for demo in demos if _fits(demo, first, unusable, config.skip_bad)]
    return kept, notes, unusable


def _fits(demo: _Demo, first: _Demo, unusable: list[str], skip_bad: bool) -> bool:
    with left_out(unusable, skip_bad):
        for field in ("state", "numbers of action"):
            if demo.schema[field] != first.schema[field]:
                told = f"{field} is {demo.schema[field]}, but {first.schema[field]} in {first.name}"
                raise UserError(f"{demo.where}: {told}; leave it out, or choose with --state")
        return True
    return False


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
        raise UserError(f"{path}, mask/{key}: names {missing[0]!r}, which is not in {hdf5.DEMOS}; make the mask again, or choose another --filter-key")
    return [demo for demo in demos if demo in members]


def _list_demo(path: Path, name: str, demo, settings: EnvironmentArguments, config: SourceConfig) -> _Demo:
    where = f"{path}: {name}"
    actions = hdf5.rows(demo, (config.action or ACTION).split(","), where)
    observations = hdf5.group(demo, "obs", where) if hdf5.has(demo, "obs", where) else None
    cameras, missing = _pictures(observations, where) if observations is not None else ({}, {})
    state = _state(observations, settings, config, where) if cameras else []
    return _Demo(
        path,
        name,
        len(actions),
        config.instruction or _instruction(demo, where),
        cameras,
        missing,
        state,
        _state_names(observations, state, where) if cameras else [],
        actions.shape[1],
        float((np.abs(actions) > 1 + 1e-3).any(1).mean()) if len(actions) else 0.0,
        hdf5.array(demo, "rewards", where) if hdf5.has(demo, "rewards", where) else None,
        settings,
    )


def _instruction(demo, where: str) -> str:
    """RoboCasa writes one to every demonstration; robomimic's own sets are of one task and do not say which."""
    return str((hdf5.json_attribute(demo, "ep_meta", where) or {}).get("lang") or "")


def _pictures(observations, where: str) -> tuple[dict[str, list[int]], dict[str, str]]:
    """({name: [H, W]}, {name: why it cannot be taken}): what is called an image, or holds eight-bit numbers in the shape of pictures."""
    cameras, missing = {}, {}
    for name in hdf5.names(observations, where):
        if frames.no_picture(name):
            missing[_camera(name)] = frames.no_picture(name)
        elif name.endswith(("_image", "_rgb")):
            cameras[name] = frames.size_of(hdf5.dataset(observations, name, where).shape, f"{where}, {name}")
        else:
            with suppress(UserError):  # what is not called a picture is looked at, but not asked for
                found = hdf5.dataset(observations, name, where)
                if frames.looks_like_pictures(found.shape, found.dtype):
                    cameras[name] = frames.size_of(found.shape, f"{where}, {name}")
    return cameras, missing


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
    widths = {name: int(np.prod(hdf5.dataset(observations, name, where).shape[1:], dtype=object)) for name in state}
    alone = not any(re.match(r"robot[1-9]", name) for name in [*state, *hdf5.names(observations, where)])
    return [f"{name.removeprefix('robot0_') if alone else name}_{i}" for name in state for i in range(min(widths[name], LARGEST_STATE))]


def _controller(demos: Sequence[_Demo], config: SourceConfig) -> Controller | None:
    """What took the actions; None where they are not its input: other columns, or numbers that lie beyond it."""
    controller = demos[0].settings.controller(demos[0].action_size)
    if (config.action or ACTION) != ACTION or controller is None or (not controller.absolute and not _are_inputs(demos)):
        return None
    return controller


def _are_inputs(demos: Sequence[_Demo]) -> bool:
    """Single commands beyond the limits are clipped; where a tenth of the steps lies beyond, the numbers are something else."""
    return sum(demo.beyond * demo.steps for demo in demos) <= 0.1 * sum(demo.steps for demo in demos)


def _action_names(config: SourceConfig, size: int) -> list[str]:
    columns = (config.action or ACTION).split(",")
    name = columns[0].rpartition("/")[2] if len(columns) == 1 and columns[0] != ACTION else "action"
    return [f"{name}_{i}" for i in range(size)]


def _meaning(demos: Sequence[_Demo], controller: Controller | None, config: SourceConfig) -> str:
    task = demos[0].settings.env_name or "the environment"
    if controller is None:
        return f"{config.action or ACTION}, as recorded"
    kind = controller.arms[0].get("type")
    if controller.absolute:
        return f"absolute poses for {task}'s controller ({kind}), in metres and radians; gripper -1 opens, +1 closes"
    return f"input of {task}'s controller ({kind}); gripper -1 opens, +1 closes"


def _outcomes(config: SourceConfig, demos: Sequence[_Demo]) -> Outcomes:
    if config.success is not None:
        return Outcomes(f"recorded ({config.success}, named by --success)", config.success, is_flag=True)
    rewards = [demo.rewards for demo in demos if demo.rewards is not None]
    return by_rewards("rewards", rewards, zeros_count=demos[0].settings.is_robosuite)


def _cameras(demos: Sequence[_Demo]) -> tuple[dict[str, dict], dict[str, str]]:
    """({camera: its description}, {camera: why it cannot be taken})."""
    first, cameras = demos[0], {}
    missing = {name: why for demo in demos for name, why in demo.no_cameras.items()}
    with hdf5.opened(first.file) as file:
        demo = hdf5.group(hdf5.group(file, hdf5.DEMOS, first.where), first.name, first.where)
        known = hdf5.json_attribute(demo, "camera_info", first.where) or {}
    for name in dict.fromkeys(name for demo in demos for name in demo.cameras):
        count = sum(name in demo.cameras for demo in demos)
        if count < len(demos):
            missing[_camera(name)] = f"only {count} of {len(demos)} demonstrations have it"
            continue
        pose = {}
        if known.get(_camera(name)) is not None and "hand" not in name:  # those of a camera on the hand change with the hand
            pose = robosuite_camera(known[_camera(name)], f"{first.where}, camera_info, {_camera(name)}")
        cameras[_camera(name)] = {"orientation": UPRIGHT if first.settings.is_robosuite else None, "size": first.cameras[name], **pose}
    if not cameras:
        raise UserError(f"{first.file.parent}: no camera that all demonstrations have: {missing}; ingest those of one kind together")
    return cameras, missing


def _notes(demos: Sequence[_Demo], controller: Controller | None, config: SourceConfig) -> list[str]:
    first = demos[0]
    notes = []
    if not first.settings.is_robosuite:
        notes.append("env_args names no controller of robosuite's: orientation and gripper are unknown, and what the action's numbers mean")
    if (config.action or ACTION) == ACTION and controller is None and not _are_inputs(demos):
        notes.append("more than a tenth of the actions lies beyond [-1, 1]: they are no normalized inputs of a controller, and taken as recorded")
    if config.state is None and len(first.settings.robots) > 1:
        notes.append(f"{len(first.settings.robots)} robots: the state holds {', '.join(first.state)}")
    return notes


def _read(listed: Listed, cameras: Sequence[str], config: SourceConfig, outcomes: Outcomes) -> Episode:
    (found,) = listed.key
    where, names = found.where, {_camera(name): name for name in found.cameras}
    with hdf5.opened(found.file) as file:
        demo = hdf5.group(hdf5.group(file, hdf5.DEMOS, where), found.name, where)
        actions = hdf5.rows(demo, (config.action or ACTION).split(","), where)
        before = hdf5.group(demo, "obs", where)
        after = hdf5.group(demo, "next_obs", where) if hdf5.has(demo, "next_obs", where) else None
        pictures = {camera: frames.colours(_with_last(before, after, names[camera], where), f"{where}, {camera}") for camera in cameras}
        states = {name: _with_last(before, after, name, where) for name in found.state}
        column = outcomes.column
        told = hdf5.array(demo, column, where) if column and (config.success or hdf5.has(demo, column, where)) else None
    steps = hdf5.same_length(where, {"actions": actions} | ({} if told is None else {column: told}))
    shown = hdf5.same_length(where, pictures | states)
    if shown - (after is not None) != steps:
        raise UserError(f"{where}: {shown - (after is not None)} observations for {steps} actions; convert it again or leave it out")
    played = shown - 1  # without next_obs nobody saw what the last action led to
    if played < 1:
        raise UserError(f"{where}: {steps} steps, expected one at least with a picture after it; leave it out")
    state = np.concatenate([values.reshape(shown, -1) for values in states.values()], 1)
    check_finite(where, "actions", actions)
    check_finite(where, "state", state)
    success, info = outcomes.of(where, told, shown)
    return Episode(
        frames=pictures,
        states=state.astype(np.float32),
        actions=actions[:played].astype(np.float32),
        success=success,
        instruction=listed.instruction,
        info={"task": listed.instruction, "source": "robomimic", **info},
        last_action=actions[-1].astype(np.float32) if after is None else None,
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
