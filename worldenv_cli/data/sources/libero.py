"""LIBERO's HDF5 demonstrations (`<task>_demo.hdf5`, its `create_dataset` script).

Three habits of these files are undone. `obs[t]` was taken *after* `actions[t]`, so the first action has no picture before it and is left out.
Pictures are OpenGL's, upside down; they are turned by 180 degrees, as every published policy expects them: upright, and mirrored. The last
reward and `dones` are 1 whether or not the task was achieved, so success is assumed of a demonstration, at its last frame.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..layout import Episode, check_finite
from ..outcomes import at_the_end
from . import hdf5
from .geometry import mujoco_camera
from .source import MIRRORED, Listed, Source, SourceConfig, validated

CAMERAS = {"agentview_rgb": "image", "eye_in_hand_rgb": "wrist_image"}  # the names that the field's datasets use
STATE = {"ee_states": ["x", "y", "z", "rx", "ry", "rz"], "gripper_states": ["finger_left", "finger_right"]}
ACTION_NAMES = ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
UNIT = [0.05] * 3 + [0.5] * 3 + [1.0]  # of LIBERO's controller, for files that do not say
NO_OP = 1e-4  # of the norm of a step without its gripper: openvla's regenerated sets leave these out


def open_libero(path: Path, config: SourceConfig) -> Source:
    """A file, or a folder with one for each task."""
    files = [path] if path.is_file() else sorted(path.glob("*.hdf5"))
    episodes: list[Listed] = []
    hertz, units = set(), []
    for file in files:
        with hdf5.opened(file) as opened:
            data = hdf5.group(opened, hdf5.DEMOS, str(file))
            instruction = config.instruction or _instruction(data, file)
            settings = validated(hdf5.EnvironmentArguments, hdf5.json_attribute(data, "env_args", str(file)), f"{file}, env_args")
            hertz.add(settings.env_kwargs.control_freq)
            units.append(settings.unit(len(ACTION_NAMES)) or UNIT)
            for demo in hdf5.demos(opened, file):
                steps, _ = hdf5.shape(hdf5.group(data, demo, str(file)), config.action or "actions", f"{file}: {demo}", 2)
                episodes.append(Listed(f"{file.name}: {demo}", instruction, steps, (file, demo)))
    if not episodes:
        raise UserError(f"{path}: no demonstrations, expected <task>_demo.hdf5 with data/demo_0 and so on; check the path")
    if len(hertz) > 1:
        raise UserError(f"{path}: control_freq differs between files ({sorted(hertz)}), expected one rate; ingest them one by one")
    state = {name: STATE.get(name) for name in config.state or STATE}
    source = Source(
        format="libero",
        path=path,
        control_hz=hertz.pop(),
        robot="panda",
        state_names=[],
        action_names=ACTION_NAMES,
        action=_action(units[0]),
        cameras=_cameras({file: demo for file, demo in reversed([listed.key for listed in episodes])}),
        episodes=episodes,
        read=lambda listed, cameras: _read(listed, cameras, list(state), config),
        outcome="demonstrations: success at the last frame",
        limits=([-1.0] * 7, [1.0] * 7),
    )
    source.state_names = _state_names(episodes[0], state)
    return source


def _instruction(data, file: Path) -> str:
    """The file's name says what the evaluation will say; `problem_info` holds the wording of the scene file, which can differ."""
    name = file.stem.removesuffix("_demo")
    scene, _, rest = name.partition("_SCENE")
    text = rest.partition("_")[2] if rest and scene.isupper() else name
    return text.replace("_", " ") or str(hdf5.json_attribute(data, "problem_info", str(file)).get("language_instruction", ""))


def _action(unit: list[float]) -> dict:
    return {
        "meaning": "dx, dy, dz (m) and drx, dry, drz (rad) move the target of the operational-space controller; gripper -1 opens, +1 closes",
        "unit": unit,
    }


def _cameras(files: dict[Path, str]) -> dict[str, dict]:
    """{camera: its description}, from one demonstration of each file. Where a camera stands is told if it is the same in all of them."""
    found = []
    for file, demo in files.items():
        where = f"{file}: {demo}"
        with hdf5.opened(file) as opened:
            data = hdf5.group(hdf5.group(opened, hdf5.DEMOS, str(file)), demo, str(file))
            observations, model = hdf5.group(data, "obs", where), str(data.attrs.get("model_file", ""))
            sizes = {name: [int(side) for side in hdf5.shape(observations, name, where, 4)[1:3]] for name in CAMERAS}
        found.append(
            {
                camera: {"orientation": MIRRORED, "size": sizes[name], **mujoco_camera(model, name.removesuffix("_rgb"), sizes[name], mirrored=True)}
                for name, camera in CAMERAS.items()
            }
        )
    if all(cameras == found[0] for cameras in found):
        return found[0]
    return {camera: {"orientation": MIRRORED, "size": known["size"]} for camera, known in found[0].items()}


def _state_names(listed: Listed, state: dict[str, list[str] | None]) -> list[str]:
    file, demo = listed.key
    names = []
    with hdf5.opened(file) as opened:
        observations = hdf5.group(opened[hdf5.DEMOS][demo], "obs", f"{file}: {demo}")
        for name, known in state.items():
            width = int(np.prod(hdf5.group(observations, name, f"{file}: {demo}").shape[1:]))
            names += known if known and len(known) == width else [f"{name}_{i}" for i in range(width)]
    return names


def _read(listed: Listed, cameras: Sequence[str], state: list[str], config: SourceConfig) -> Episode:
    file, demo = listed.key
    where = f"{file}: {demo}"
    with hdf5.opened(file) as opened:
        data = hdf5.group(hdf5.group(opened, hdf5.DEMOS, str(file)), demo, str(file))
        observations = hdf5.group(data, "obs", where)
        actions = hdf5.table(data, config.action or "actions", where)
        frames = {camera: hdf5.pictures(observations, name, where) for name, camera in CAMERAS.items() if camera in cameras}
        states = [hdf5.array(observations, name, where) for name in state]
    length = hdf5.same_length(where, {"actions": actions} | frames | dict(zip(state, states)))
    if length < 3:
        raise UserError(f"{where}: {length} steps, expected three at least: the first one has no picture before it; drop the demonstration")
    for name, values in {"actions": actions, **dict(zip(state, states))}.items():
        check_finite(where, name, values.reshape(len(values), -1))
    kept = _kept(actions) if config.drop_no_ops else np.arange(length)
    return Episode(
        frames={camera: np.ascontiguousarray(shown[kept][:, ::-1, ::-1]) for camera, shown in frames.items()},
        states=np.concatenate([values.reshape(length, -1)[kept] for values in states], 1).astype(np.float32),
        actions=actions[kept[1:]].astype(np.float32),
        success=at_the_end(len(kept)),
        instruction=listed.instruction,
        info={"task": listed.instruction, "source": "libero", "steps": kept.tolist() if config.drop_no_ops else None},
    )


def _kept(actions: np.ndarray) -> np.ndarray:
    """Frames that stay when steps without motion and without a change of the gripper are left out; the first one always does."""
    moved = np.linalg.norm(actions[:, :-1], axis=1) >= NO_OP
    turned = np.append(False, actions[1:, -1] != actions[:-1, -1])
    return np.flatnonzero(np.append(True, (moved | turned)[1:]))
