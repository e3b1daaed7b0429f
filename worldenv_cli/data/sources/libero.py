"""LIBERO's HDF5 demonstrations (`<task>_demo.hdf5`): those of its own `create_dataset` script, and those that were played again, as OpenVLA's are.

Two habits are told apart by the recorded states: in LIBERO's own files `obs[t]` was taken *after* `actions[t]`, so the first action has no picture
before it and is left out; in files that were played again it was taken before, and the last action has no picture after it. Pictures are OpenGL's,
upside down; they are turned by 180 degrees, as every published policy expects them: upright, and mirrored.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..layout import Episode
from . import demonstrations, hdf5
from .alignment import observed_after
from .demonstrations import Demonstration, action_columns, are_inputs, left_out
from .geometry import mujoco_camera
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
ACTION_NAMES = ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
MEANING = "dx, dy, dz (m) and drx, dry, drz (rad) move the target of the operational-space controller; gripper -1 opens, +1 closes"
LIBEROS = {"robot": "panda", "control_hz": 20, "unit": [0.05] * 3 + [0.5] * 3 + [1.0]}  # of every task of LIBERO
WRITTEN_BY_LIBERO = ("states", "robot_states", "obs/joint_states", "obs/agentview_rgb")  # what its scripts write beside the actions, and few others
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
    after: bool = False  # whether observations follow their actions, as the first demonstration that tells says
    poses: dict[str, dict] = field(default_factory=dict)  # {name in the file: where the camera stands}
    aside: list[str] = field(default_factory=list)

    @property
    def control_hz(self) -> float | None:
        recorded = self.settings.env_kwargs.control_freq if self.settings else None
        return recorded or (LIBEROS["control_hz"] if self.is_libero else None)


@dataclass
class _Demo(Demonstration):
    facts: _File
    told: bool | None  # whether its own states say that observations follow their actions

    @property
    def after(self) -> bool:
        return self.facts.after if self.told is None else self.told


def open_libero(path: Path, config: SourceConfig) -> Source:
    """A file, or a folder with one for each task."""
    unusable: list[str] = []
    demos = _listed(path, config, unusable)
    files = list({demo.file: demo.facts for demo in demos}.values())
    known = all(file.is_libero for file in files)
    size = demos[0].action_size
    inputs = known and action_columns(config) == [demonstrations.ACTION] and size == len(ACTION_NAMES) and are_inputs(demos)
    outcomes = demonstrations.named_by_user(config) or _outcomes(files, demos)
    names, missing = demonstrations.common_cameras(demos)
    return Source(
        format="libero",
        path=path,
        control_hz=_rate(path, files),
        robot=LIBEROS["robot"] if known else None,
        state_names=demos[0].state_names,
        action_names=ACTION_NAMES if inputs else [f"action_{i}" for i in range(size)],
        action=_action(files, config) if inputs else {"meaning": f"{config.action or demonstrations.ACTION}, as recorded", "unit": None},
        cameras={_camera(name): _described(name, demos[0], files, known) for name in names},
        episodes=[Listed(f"{demo.file.name}: {demo.name}", demo.facts.instruction, demo.steps, (demo,)) for demo in demos],
        read=lambda listed, cameras: _read(listed, cameras, config, outcomes),
        outcome=outcomes.told,
        limits=([-1.0] * size, [1.0] * size) if inputs else None,
        gripper={"dimension": size - 1, "closes": 1} if inputs else None,
        unusable=unusable,
        unusable_cameras={_camera(name): why for name, why in missing.items()},
        notes=_notes(files, demos, known, inputs),
    )


def _listed(path: Path, config: SourceConfig, unusable: list[str]) -> list[_Demo]:
    demos: list[_Demo] = []
    for file in hdf5.files_of(path):
        with left_out(unusable, config.skip_bad):
            demos += _list_file(file, config, unusable)
    if not demos:
        why = f": {unusable[0]}" if unusable else ", expected <task>_demo.hdf5 with data/demo_0 and so on; check the path"
        raise UserError(f"{path}: no demonstrations{why}")
    return demonstrations.with_cameras(demonstrations.alike(demos, unusable, config.skip_bad), unusable, config.skip_bad)


def _list_file(path: Path, config: SourceConfig, unusable: list[str]) -> list[_Demo]:
    where, demos = str(path), []
    with hdf5.opened(path) as file:
        data = hdf5.group(file, hdf5.DEMOS, where)
        facts = _facts(path, data, config)
        for name in hdf5.demos(data, where):
            with left_out(unusable, config.skip_bad):
                demo = hdf5.group(data, name, where)
                demos.append(_list_demo(facts, name, demo, config))
                if len(demos) == 1:
                    facts.is_libero |= all(hdf5.has(demo, member, where) for member in WRITTEN_BY_LIBERO)
                    facts.poses = _poses(demos[0], demo)
                    facts.aside = demonstrations.other_pictures(hdf5.group(demo, "obs", where), where)
    facts.after = next((demo.told for demo in demos if demo.told is not None), facts.has_problem)
    return demos


def _facts(path: Path, data, config: SourceConfig) -> _File:
    where = str(path)
    problem, arguments = (hdf5.json_attribute(data, name, where) for name in ("problem_info", "env_args"))
    settings = None if arguments is None else validated(EnvironmentArguments, arguments, f"{where}, env_args")
    instruction = config.instruction or _instruction(path, hdf5.text(data, "bddl_file_name", where), problem)
    upside_down = hdf5.text(data, "macros_image_convention", where) != "opencv"
    return _File(path, instruction, problem is not None, problem is not None, settings, upside_down)


def _list_demo(facts: _File, name: str, demo, config: SourceConfig) -> _Demo:
    where = f"{facts.path}: {name}"
    observations = hdf5.group(demo, "obs", where)
    cameras = demonstrations.colour_names(observations, where, ("_rgb",))
    if not cameras:
        found = hdf5.names(observations, where)[:12]
        raise UserError(f"{where}: no pictures among {found}, expected agentview_rgb; make them with LIBERO's create_dataset.py")
    state = list(config.state or _default_state(observations, where))
    joints = [hdf5.array(holder, key, where) for holder, key in ((observations, "joint_states"), (demo, "states")) if hdf5.has(holder, key, where)]
    return _Demo(
        file=facts.path,
        name=name,
        **demonstrations.numbers(demo, config, where),
        state=state,
        state_names=_state_names(demonstrations.widths(observations, state, where)),
        cameras={name: cameras[name] for name in sorted(cameras, key=lambda name: (name not in CAMERAS, name))},
        facts=facts,
        told=observed_after(*joints) if len(joints) == 2 else None,
    )


def _default_state(observations, where: str) -> tuple[str, ...]:
    """The hand's pose and its fingers, under one of the names that files have for them."""
    return next((names for names in STATES if all(hdf5.has(observations, name, where) for name in names)), STATES[0])


def _state_names(widths: dict[str, int]) -> list[str]:
    names = []
    for name, width in widths.items():
        known = STATE_NAMES.get(name, [])
        names += known if len(known) == width else [f"{name}_{i}" for i in range(width)]
    return names


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
    rates = {file.control_hz for file in files}
    if len(rates) > 1:
        raise UserError(f"{path}: control_freq differs between files ({sorted(rates, key=str)}), expected one rate; ingest them one by one")
    return rates.pop()


def _action(files: list[_File], config: SourceConfig) -> dict:
    controller = next((file.settings.controller(len(ACTION_NAMES)) for file in files if file.settings), None)
    return {"meaning": MEANING, "unit": controller and controller.unit or LIBEROS["unit"]}


def _outcomes(files: list[_File], demos: list[_Demo]) -> Outcomes:
    definition = all(file.has_problem for file in files)
    rewards = [demo.rewards for demo in demos if demo.rewards is not None]
    if definition and not rewards:
        return Outcomes("demonstrations, by LIBERO's definition: success at the last frame", demonstrations=True)
    recorded = by_rewards("rewards", rewards, zeros_count=True)
    if definition and recorded.column:
        return Outcomes("recorded (rewards > 0, which LIBERO writes at the end of every demonstration)", recorded.column, demonstrations=True)
    return recorded


def _poses(first: _Demo, demo) -> dict[str, dict]:
    """{name: intrinsics and extrinsics} of the cameras that stand still."""
    model = hdf5.text(demo, "model_file", first.where)
    if model is None:
        return {}
    return {name: mujoco_camera(model, name.removesuffix("_rgb"), size, first.where, mirrored=True) for name, size in first.cameras.items()}


def _described(name: str, first: _Demo, files: list[_File], known: bool) -> dict:
    """A camera. Where it stands is told if it is the same in all files."""
    poses = [file.poses.get(name, {}) for file in files]
    pose = poses[0] if known and all(pose == poses[0] for pose in poses) else {}
    return {"orientation": MIRRORED if known else None, "size": first.cameras[name], **pose}


def _camera(name: str) -> str:
    return CAMERAS.get(name, name.removesuffix("_rgb"))


def _notes(files: list[_File], demos: list[_Demo], known: bool, inputs: bool) -> list[str]:
    notes = list(dict.fromkeys(line for file in files for line in file.aside))
    for after, words in ((True, "after the action of their row, LIBERO's habit"), (False, "before the action of their row")):
        count, assumed = (sum(demo.after == after and demo.told in kinds for demo in demos) for kinds in ((True, False, None), (None,)))
        if count:
            how = f", assumed of {assumed} whose states do not tell" if assumed else ", as their states tell"
            notes.append(f"{count} demonstrations: pictures were taken {words}{how}")
    bare = [file for file in files if file.settings is None or file.settings.env_kwargs.control_freq is None]
    if known and bare:
        notes.append(f"{bare[0].path.name}: no control_freq; {LIBEROS['control_hz']} Hz and the Panda's controller by LIBERO's definition")
    if not known:
        notes.append("not known to be LIBERO's: robot, orientation and gripper are unknown, and pictures are taken as they lie")
    elif not inputs:
        notes.append("the actions are no inputs of LIBERO's controller, seven numbers in [-1, 1], and taken as recorded")
    return notes


def _read(listed: Listed, cameras, config: SourceConfig, outcomes: Outcomes) -> Episode:
    (found,) = listed.key
    where, names, after = found.where, {_camera(name): name for name in found.cameras}, found.after
    with hdf5.opened(found.file) as file:
        demo = hdf5.group(hdf5.group(file, hdf5.DEMOS, where), found.name, where)
        observations = hdf5.group(demo, "obs", where)
        actions, states = hdf5.rows(demo, action_columns(config), where), hdf5.rows(observations, found.state, where)
        told = demonstrations.outcome_column(demo, outcomes, config, where)
        shown = demonstrations.read_pictures({camera: hdf5.array(observations, names[camera], where) for camera in cameras}, where)
    length = hdf5.same_length(where, {"actions": actions, "state": states} | shown | told)
    if length < 2 + after:
        why = ": the first one has no picture before it" if after else ", with a picture before and after an action"
        raise UserError(f"{where}: {length} steps, expected {'three' if after else 'two'} at least{why}; leave it out")
    actions, states = demonstrations.as_float32(where, "actions", actions), demonstrations.as_float32(where, "state", states)
    success, info = outcomes.of(where, told[outcomes.column][int(after) :] if told else None, length)
    played, before = (actions[1:], actions[:-1]) if after else (actions[:-1], actions[[0, *range(length - 2)]])
    kept = _kept(played, before, where) if config.drop_no_ops else np.arange(length)
    turn = slice(None, None, -1 if found.facts.is_libero and found.facts.upside_down else None)
    mirror = slice(None, None, -1 if found.facts.is_libero else None)
    return Episode(
        frames={camera: np.ascontiguousarray(pictures[kept][:, turn, mirror]) for camera, pictures in shown.items()},
        states=states[kept],
        actions=played[kept[1:] - 1],
        success=np.append(success[kept[:-1]], success[-1]),
        instruction=listed.instruction,
        info={"task": listed.instruction, "source": "libero", "steps": kept.tolist() if config.drop_no_ops else None, **info},
        last_action=None if after else actions[-1],
    )


def _kept(actions: np.ndarray, before: np.ndarray, where: str) -> np.ndarray:
    """Frames that stay when steps without motion and without a change of the gripper are left out; the first one always does."""
    moved = np.linalg.norm(actions[:, :-1], axis=1) >= NO_OP
    turned = actions[:, -1] != before[:, -1]
    if not (moved | turned).any():
        raise UserError(f"{where}: {len(actions)} steps, none of which moves anything, so --drop-no-ops leaves nothing; leave the demonstration out")
    return np.flatnonzero(np.append(True, moved | turned))
