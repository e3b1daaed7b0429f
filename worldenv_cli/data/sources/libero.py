"""LIBERO's HDF5 demonstrations (`<task>_demo.hdf5`): those of its own `create_dataset` script, and those that were played again, as OpenVLA's are.

Two habits are told apart by the recorded states: in LIBERO's own files `obs[t]` was taken *after* `actions[t]`, so the first action has no picture
before it and is left out; in files that were played again it was taken before, and the last action has no picture after it. Pictures are OpenGL's,
upside down; they are turned by 180 degrees, as every published policy expects them: upright, and mirrored.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..layout import Episode, check_finite
from . import frames, hdf5
from .alignment import observed_after
from .geometry import mujoco_camera
from .listing import left_out
from .rewards import Outcomes, by_rewards
from .robosuite import EnvironmentArguments
from .source import MIRRORED, Listed, Source, SourceConfig, validated

CAMERAS = {"agentview_rgb": "image", "eye_in_hand_rgb": "wrist_image"}  # the names that the field's datasets use
STATES = (("ee_states", "gripper_states"), ("ee_pos", "ee_ori", "gripper_states"))  # the first one that a file has
STATE_NAMES = {
    "ee_states": ["x", "y", "z", "rx", "ry", "rz"],
    "ee_pos": ["x", "y", "z"],
    "ee_ori": ["rx", "ry", "rz"],
    "gripper_states": ["finger_left", "finger_right"],
}
ACTION, ACTION_NAMES = "actions", ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
MEANING = "dx, dy, dz (m) and drx, dry, drz (rad) move the target of the operational-space controller; gripper -1 opens, +1 closes"
LIBEROS = {"robot": "panda", "control_hz": 20, "unit": [0.05] * 3 + [0.5] * 3 + [1.0]}  # of every task of LIBERO
WRITTEN_BY_LIBERO = {"states", "robot_states", "obs/joint_states", "obs/agentview_rgb"}  # what its scripts write beside the actions, and few others
NO_OP = 1e-4  # of the norm of a step without its gripper: openvla's regenerated sets leave these out


@dataclass
class _File:
    """What one file says of itself."""

    path: Path
    instruction: str
    is_libero: bool  # whether LIBERO's own facts hold for it
    has_problem: bool  # LIBERO's own script wrote it, or somebody copied its attributes
    settings: EnvironmentArguments | None
    upside_down: bool
    after: bool | None = None  # whether observations follow their actions, as the first demonstration that tells says
    cameras: dict[str, list[int]] = field(default_factory=dict)  # {name in the file: [H, W]} of its first demonstration
    poses: dict[str, dict] = field(default_factory=dict)


def open_libero(path: Path, config: SourceConfig) -> Source:
    """A file, or a folder with one for each task."""
    files, demos, unusable = [], [], []
    for file in hdf5.files_of(path):
        with left_out(unusable, config.skip_bad):
            facts, found = _list_file(file, config, unusable)
            files.append(facts)
            demos += found
    if not demos:
        why = f": {unusable[0]}" if unusable else ", expected <task>_demo.hdf5 with data/demo_0 and so on; check the path"
        raise UserError(f"{path}: no demonstrations{why}")
    names, size = demos[0].state_names, demos[0].action_size
    demos = [demo for demo in demos if _fits(demo, names, size, unusable, config.skip_bad)]
    files = [file for file in files if any(demo.file is file for demo in demos)]
    outcomes = _outcomes(config, files, demos)
    known = all(file.is_libero for file in files)
    cameras, missing = _cameras(files, demos, known)
    return Source(
        format="libero",
        path=path,
        control_hz=_rate(path, files),
        robot=LIBEROS["robot"] if known else None,
        state_names=names,
        action_names=ACTION_NAMES if known and _is_input(config, size) else [f"action_{i}" for i in range(size)],
        action=_action(files, demos, known, config),
        cameras=cameras,
        outcome=outcomes.told,
        episodes=[Listed(f"{demo.file.path.name}: {demo.name}", demo.file.instruction, demo.steps, (demo,)) for demo in demos],
        read=lambda listed, cameras: _read(listed, cameras, config, outcomes),
        limits=([-1.0] * size, [1.0] * size) if known and _is_input(config, size) and _are_inputs(demos) else None,
        gripper={"dimension": size - 1, "closes": 1} if known and _is_input(config, size) else None,
        unusable=unusable,
        unusable_cameras=missing,
        notes=_notes(files, demos, config),
    )


@dataclass
class _Demo:
    file: _File
    name: str
    steps: int
    action_size: int
    state_names: list[str]
    cameras: dict[str, list[int]]
    no_cameras: dict[str, str]  # {name: why it cannot be taken}
    rewards: np.ndarray | None
    beyond: float  # share of the steps with a number beyond [-1, 1]
    after: bool | None

    @property
    def where(self) -> str:
        return f"{self.file.path}: {self.name}"


def _list_file(path: Path, config: SourceConfig, unusable: list[str]) -> tuple[_File, list[_Demo]]:
    where = str(path)
    with hdf5.opened(path) as file:
        data = hdf5.group(file, hdf5.DEMOS, where)
        problem = hdf5.json_attribute(data, "problem_info", where)
        arguments = hdf5.json_attribute(data, "env_args", where)
        settings = None if arguments is None else validated(EnvironmentArguments, arguments, f"{where}, env_args")
        instruction = config.instruction or _instruction(path, hdf5.text(data, "bddl_file_name", where), problem)
        upside_down = hdf5.text(data, "macros_image_convention", where) != "opencv"
        facts = _File(path, instruction, problem is not None, problem is not None, settings, upside_down)
        demos = []
        for name in hdf5.demos(data, where):
            with left_out(unusable, config.skip_bad):
                demo = hdf5.group(data, name, where)
                if not facts.is_libero:
                    facts.is_libero = all(_has(demo, member, f"{where}: {name}") for member in WRITTEN_BY_LIBERO)
                demos.append(_list_demo(facts, name, demo, config))
                if not facts.cameras:
                    facts.cameras, facts.poses = demos[0].cameras, _poses(demos[0], demo)
    facts.after = next((demo.after for demo in demos if demo.after is not None), facts.has_problem)
    return facts, demos


def _list_demo(file: _File, name: str, demo, config: SourceConfig) -> _Demo:
    where = f"{file.path}: {name}"
    observations = hdf5.group(demo, "obs", where)
    actions = hdf5.rows(demo, _columns(config.action or ACTION), where)
    cameras, missing = _pictures(observations, where)
    joints = [hdf5.array(holder, key, where) for holder, key in ((observations, "joint_states"), (demo, "states")) if _has(holder, key, where)]
    return _Demo(
        file,
        name,
        len(actions),
        actions.shape[1],
        _state_names(observations, config, where),
        cameras,
        missing,
        hdf5.array(demo, "rewards", where) if hdf5.has(demo, "rewards", where) else None,
        float((np.abs(actions) > 1 + 1e-3).any(1).mean()) if len(actions) else 0.0,
        observed_after(*joints) if len(joints) == 2 else None,
    )


def _columns(text: str) -> list[str]:
    return text.split(",")


def _has(holder, path: str, where: str) -> bool:
    *groups, name = path.split("/")
    for part in groups:
        if not hdf5.has(holder, part, where):
            return False
        holder = hdf5.group(holder, part, where)
    return hdf5.has(holder, name, where)


def _pictures(observations, where: str) -> tuple[dict[str, list[int]], dict[str, str]]:
    """({name: [H, W]}, {name: why it cannot be taken}) of what is called a camera."""
    cameras, missing = {}, {}
    for name in hdf5.names(observations, where):
        if frames.no_picture(name):
            missing[name] = frames.no_picture(name)
        elif name.endswith("_rgb"):
            cameras[name] = frames.size_of(hdf5.dataset(observations, name, where).shape, f"{where}, {name}")
    if not cameras:
        raise UserError(f"{where}: no pictures among {hdf5.names(observations, where)[:12]}, expected agentview_rgb; make them with LIBERO's create_dataset.py")
    return {name: cameras[name] for name in sorted(cameras, key=lambda name: (name not in CAMERAS, name))}, missing


def _state(observations, config: SourceConfig, where: str) -> list[str]:
    """The arrays that make up the state: what is asked for, else the hand's pose and its fingers, under one of the names they have."""
    if config.state:
        return list(config.state)
    return list(next((names for names in STATES if all(hdf5.has(observations, name, where) for name in names[:-1])), STATES[0]))


def _state_names(observations, config: SourceConfig, where: str) -> list[str]:
    names = []
    for name in _state(observations, config, where):
        width = int(np.prod(hdf5.dataset(observations, name, where).shape[1:], dtype=object))
        known = STATE_NAMES.get(name, [])
        names += known if len(known) == width else [f"{name}_{i}" for i in range(min(width, LARGEST_STATE))]
    return names


LARGEST_STATE = 2**16  # numbers of one array: more names than that are not made before the array itself was measured


def _fits(demo: _Demo, names: list[str], size: int, unusable: list[str], skip_bad: bool) -> bool:
    with left_out(unusable, skip_bad):
        if demo.state_names != names or demo.action_size != size:
            found = f"{demo.action_size} numbers of action and {len(demo.state_names)} of state ({', '.join(demo.state_names[:12])})"
            raise UserError(f"{demo.where}: {found}, but {size} and {len(names)} in the first demonstration; ingest them one by one")
        return True
    return False


def _instruction(path: Path, bddl: str | None, problem: dict | None) -> str:
    """What the evaluation will say: the name of the task's file. `problem_info` holds the wording of the scene file, which can differ."""
    name = path.stem
    if not name.endswith("_demo"):
        name = Path(bddl).stem if bddl else "" if problem else name if name.count("_") > 1 else ""
    name = name.removesuffix("_demo")
    scene, _, rest = name.partition("_SCENE")
    text = rest.partition("_")[2] if rest and scene.isupper() else name
    return text.replace("_", " ") or str((problem or {}).get("language_instruction", ""))


def _rate(path: Path, files: list[_File]) -> float | None:
    rates = {file.settings and file.settings.env_kwargs.control_freq or (LIBEROS["control_hz"] if file.is_libero else None) for file in files}
    if len(rates) > 1:
        raise UserError(f"{path}: control_freq differs between files ({sorted(rates, key=str)}), expected one rate; ingest them one by one")
    return rates.pop()


def _is_input(config: SourceConfig, size: int) -> bool:
    """Whether the action is what LIBERO's controller took."""
    return (config.action or ACTION) == ACTION and size == len(ACTION_NAMES)


def _are_inputs(demos: list[_Demo]) -> bool:
    """Single commands beyond the limits are clipped; where a tenth of the steps lies beyond, the numbers are something else."""
    return sum(demo.beyond * demo.steps for demo in demos) <= 0.1 * sum(demo.steps for demo in demos)


def _action(files: list[_File], demos: list[_Demo], known: bool, config: SourceConfig) -> dict:
    if not known or not _is_input(config, demos[0].action_size):
        return {"meaning": f"{config.action or ACTION}, as recorded", "unit": None}
    if not _are_inputs(demos):
        return {"meaning": "as recorded: no inputs of LIBERO's controller, which lie in [-1, 1]", "unit": None}
    controller = next((file.settings.controller(len(ACTION_NAMES)) for file in files if file.settings), None)
    return {"meaning": MEANING, "unit": controller and controller.unit or LIBEROS["unit"]}


def _outcomes(config: SourceConfig, files: list[_File], demos: list[_Demo]) -> Outcomes:
    if config.success is not None:
        return Outcomes(f"recorded ({config.success}, named by --success)", config.success, is_flag=True)
    demonstrations = all(file.has_problem for file in files)
    if demonstrations and not any(demo.rewards is not None for demo in demos):
        return Outcomes("demonstrations, by LIBERO's definition: success at the last frame", demonstrations=True)
    found = by_rewards("rewards", [demo.rewards for demo in demos if demo.rewards is not None], zeros_count=True)
    if demonstrations and found.column:
        return Outcomes("recorded (rewards > 0, which LIBERO writes at the end of every demonstration)", found.column, demonstrations=True)
    return found


def _poses(first: _Demo, demo) -> dict[str, dict]:
    """{name: intrinsics and extrinsics} of the cameras that stand still."""
    model = hdf5.text(demo, "model_file", first.where)
    if model is None:
        return {}
    return {name: mujoco_camera(model, name.removesuffix("_rgb"), size, first.where, mirrored=True) for name, size in first.cameras.items()}


def _cameras(files: list[_File], demos: list[_Demo], known: bool) -> tuple[dict[str, dict], dict[str, str]]:
    """({camera: its description}, {camera: why it cannot be taken}). Where a camera stands is told if it is the same in all files."""
    missing = {_camera(name): why for demo in demos for name, why in demo.no_cameras.items()}
    cameras = {}
    for name in dict.fromkeys(name for demo in demos for name in demo.cameras):
        count = sum(name in demo.cameras for demo in demos)
        if count < len(demos):
            missing[_camera(name)] = f"only {count} of {len(demos)} demonstrations have it"
            continue
        poses = [file.poses.get(name, {}) for file in files]
        pose = poses[0] if all(pose == poses[0] for pose in poses) else {}
        cameras[_camera(name)] = {"orientation": MIRRORED if known else None, "size": demos[0].cameras[name], **pose}
    if not cameras:
        raise UserError(f"{files[0].path.parent}: no camera that all demonstrations have: {missing}; ingest those of one kind together")
    return cameras, missing


def _camera(name: str) -> str:
    return CAMERAS.get(name, name.removesuffix("_rgb"))


def _notes(files: list[_File], demos: list[_Demo], config: SourceConfig) -> list[str]:
    notes = []
    for after, words in ((True, "after the action of their row, LIBERO's habit"), (False, "before the action of their row")):
        found = [demo for demo in demos if (demo.file.after if demo.after is None else demo.after) == after]
        assumed = [demo for demo in found if demo.after is None]
        if found:
            how = f", assumed of {len(assumed)} whose states do not tell" if assumed else ", as their states tell"
            notes.append(f"{len(found)} demonstrations: pictures were taken {words}{how}")
    bare = [file for file in files if file.settings is None or file.settings.env_kwargs.control_freq is None]
    if bare and all(file.is_libero for file in bare):
        notes.append(f"{bare[0].path.name}: no env_args; {LIBEROS['control_hz']} Hz and the Panda's controller by LIBERO's definition")
    if not all(file.is_libero for file in files):
        notes.append("not known to be LIBERO's: robot, orientation and gripper are unknown, and pictures are taken as they lie")
    if _is_input(config, demos[0].action_size) and not _are_inputs(demos):
        notes.append("more than a tenth of the actions lies beyond [-1, 1]: they are no inputs of LIBERO's controller, and taken as recorded")
    return notes


def _read(listed: Listed, cameras, config: SourceConfig, outcomes: Outcomes) -> Episode:
    (found,) = listed.key
    where, names = found.where, {_camera(name): name for name in found.cameras}
    after = found.file.after if found.after is None else found.after
    with hdf5.opened(found.file.path) as file:
        demo = hdf5.group(hdf5.group(file, hdf5.DEMOS, where), found.name, where)
        observations = hdf5.group(demo, "obs", where)
        actions = hdf5.rows(demo, _columns(config.action or ACTION), where)
        states = hdf5.rows(observations, _state(observations, config, where), where)
        pictures = {camera: frames.colours(hdf5.array(observations, names[camera], where), f"{where}, {camera}") for camera in cameras}
        column = outcomes.column
        told = hdf5.array(demo, column, where) if column and (config.success or hdf5.has(demo, column, where)) else None
    length = hdf5.same_length(where, {"actions": actions, "state": states} | pictures | ({} if told is None else {column: told}))
    if length < 2 + after:
        why = ": the first one has no picture before it" if after else ", with a picture before and after an action"
        raise UserError(f"{where}: {length} steps, expected {'three' if after else 'two'} at least{why}; leave it out")
    check_finite(where, "actions", actions)
    check_finite(where, "state", states)
    success, info = outcomes.of(where, told if told is None else told[int(after) :], length)
    played, before = (actions[1:], actions[:-1]) if after else (actions[:-1], actions[[0, *range(length - 2)]])
    kept = _kept(played, before, where) if config.drop_no_ops else np.arange(length)
    success = success[kept] | (np.arange(len(kept)) == len(kept) - 1) & success[-1]
    turned = slice(None, None, -1 if found.file.is_libero and found.file.upside_down else None)
    mirrored = slice(None, None, -1 if found.file.is_libero else None)
    return Episode(
        frames={camera: np.ascontiguousarray(shown[kept][:, turned, mirrored]) for camera, shown in pictures.items()},
        states=states[kept].astype(np.float32),
        actions=played[kept[1:] - 1].astype(np.float32),
        success=success,
        instruction=listed.instruction,
        info={"task": listed.instruction, "source": "libero", "steps": kept.tolist() if config.drop_no_ops else None, **info},
        last_action=None if after else actions[-1].astype(np.float32),
    )


def _kept(actions: np.ndarray, before: np.ndarray, where: str) -> np.ndarray:
    """Frames that stay when steps without motion and without a change of the gripper are left out; the first one always does."""
    moved = np.linalg.norm(actions[:, :-1], axis=1) >= NO_OP
    turned = actions[:, -1] != before[:, -1]
    if not (moved | turned).any():
        raise UserError(f"{where}: {len(actions)} steps, none of which moves anything, so --drop-no-ops leaves nothing; leave the demonstration out")
    return np.flatnonzero(np.append(True, moved | turned))
