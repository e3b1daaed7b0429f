"""One LIBERO task as the toolkit sees it: the field's protocol, so that success rates can be laid beside published ones.

* Pictures are turned by 180 degrees from what OpenGL gives, as every published policy expects them: upright, and mirrored left to right.
* The state is the 8 numbers, the action the 7 of LIBERO's data sets; an episode begins with steps that only let the objects settle.
* Start i of an evaluation is the i-th of the 50 initial states that LIBERO recorded for the task. No other purpose ever sees those: its starts
  are drawn, by their seeds, from the regions that the scene's own file gives each object. They are spread as the recorded ones are (measured in
  four suites: the same means and deviations). Evaluation starts beyond the recorded ones are drawn too.
* Furniture stands where the seed puts it, within two centimetres, in recorded starts as well, for those do not hold it. So a start is the same
  scene for every policy; elsewhere furniture is drawn from one stream for a whole evaluation.

Drawing goes through one context for a process, not through robosuite's, one for each instance: several corrupt each other under OSMesa.
The pictures are the same to the bit.
"""

import atexit
import logging
import tempfile
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from ..config import Config
from .libero_package import find_assets, find_package, point_at, read_init_states
from .libero_tasks import SUITES, instruction
from .starts import evaluation_number
from .success import achieved

STATE_NAMES = ("x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right")  # metres, axis-angle in radians, metres from the middle
ACTION_NAMES = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")  # each in [-1, 1]
CONTROL_HZ = 20
METRES_PER_STEP = 0.0125  # of the hand under an action of 1, once under way (measured: 0.0117 to 0.0133); its target is 0.05 ahead
HORIZONS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}  # openvla's, and so everyone's
OPENING = [0.0] * 6 + [12.5, -12.5]  # weights of the state: 1 with the fingers 8 cm apart
TABLES = {"libero_spatial": 0.9, "libero_object": 0.0, "libero_goal": 0.9, "KITCHEN": 0.9, "LIVING_ROOM": 0.41, "STUDY": 0.867}  # metres
SETTLE = np.array([0, 0, 0, 0, 0, 0, -1.0])  # hold still, gripper open
MODEL_CAMERAS = ("agentview", "robot0_eye_in_hand")
TABLE = "0.6586131746834771 0 1.6103500240372423", "0.6380177736282349 0.3048497438430786 0.30484986305236816 0.6380177736282349"
LOW = "0.6182166934013367 0.3432307541370392 0.3432314395904541 0.6182177066802979"
AGENT_VIEWS = {  # where the first camera stands (metres) and how it is turned (w, x, y, z), by suite or by kind of scene
    "libero_spatial": TABLE,
    "libero_object": ("0.8965773716836134 5.216182733499864e-07 0.65", LOW),
    "libero_goal": TABLE,
    "KITCHEN": TABLE,
    "LIVING_ROOM": ("0.6065773716836134 0 0.96", LOW),
    "STUDY": ("0.4586131746834771 0 1.6103500240372423", TABLE[1]),
}


class LiberoConfig(Config):
    """A suite or some of its tasks, and the protocol that every rollout in them follows."""

    kind: Literal["libero"] = Field("libero", description="Which real environment")
    suite: Literal[tuple(SUITES)] = Field(description="Which of LIBERO's suites")
    tasks: dict[str, str] = Field({}, description="A list of the suite's task names, or name: instruction; by default all of them")
    horizon: int = Field(None, ge=1, description="Environment steps in an episode, at most, without the settling; by default the suite's own")
    cameras: tuple[str, ...] = Field(
        ("image",), min_length=1, max_length=2, description="Names in datasets of the agent view and, if it is used, of the wrist camera"
    )
    resolution: int = Field(256, ge=16, description="Pixels on a side of the pictures")
    settle: int = Field(10, ge=0, description="Steps at the start of an episode in which the robot holds still and objects settle")
    chunk: int = Field(8, ge=1, description="Actions (control steps) in an action chunk")
    action_repeat: Literal[1] = Field(1, description="Environment steps for which an action is held: always one")
    workers: int = Field(2, ge=1, description="Processes that run the real environment; each takes about 1 GB")
    rows: int = Field(2, ge=1, description="Episodes that run side by side, over all workers; each takes about 100 MB")
    worker_timeout: float = Field(60, gt=0, description="Seconds that a worker may take for each row it is asked about; then it is started anew")
    linger: int = Field(1, ge=0, description="Action chunks that are still played after a success, where an episode ends with it")
    renderer: Literal["auto", "egl", "osmesa", "glfw"] = Field("auto", description="How MuJoCo renders; auto: the first that works here")
    python: str | None = Field(None, description="Python interpreter of the workers: LIBERO needs old packages, so it has an environment of its own")
    assets: str | None = Field(None, description="Folder of LIBERO's meshes and textures, if they are not in the installed package")

    title: ClassVar[str] = "LIBERO"
    robot: ClassVar[str] = "panda"
    state_names: ClassVar[tuple[str, ...]] = STATE_NAMES
    action_names: ClassVar[tuple[str, ...]] = ACTION_NAMES
    control_hz: ClassVar[int] = CONTROL_HZ
    command_unit: ClassVar[tuple[float, ...]] = (0.05,) * 3 + (0.5,) * 3 + (1.0,)  # what 1 is to the controller: m, rad, the gripper
    gripper: ClassVar[dict] = {"dimension": 6, "closes": 1}

    @field_validator("tasks", mode="before")
    @classmethod
    def _of_the_suite(cls, tasks, info: ValidationInfo):
        known = SUITES.get(info.data.get("suite"), ())
        if isinstance(tasks, (list, tuple)) or not tasks:
            tasks = {str(name): instruction(str(name)) for name in tasks or known}
        for name in tasks if known and isinstance(tasks, dict) else ():
            if name not in known:
                import difflib

                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(f"{info.data['suite']} has no task {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return tasks

    @field_validator("horizon", mode="before")
    @classmethod
    def _by_suite(cls, horizon, info: ValidationInfo):
        return HORIZONS.get(info.data.get("suite"), 1) if horizon is None else horizon

    @property
    def chunks(self) -> int:
        """Action chunks in a full episode; an incomplete last one is not played."""
        return self.horizon // self.chunk

    @property
    def protocol(self) -> dict:
        """What a reader of its success rates must know."""
        return {
            "environment": f"LIBERO, {self.suite}, success at any time within the horizon",
            "initial states": "LIBERO's recorded ones in order; drawn from the scene's regions where there are no more",
            "horizon": f"{self.horizon} environment steps, of which whole chunks are played: {self.chunks * self.chunk}",
            "settle steps": self.settle,
            "chunk": f"{self.chunk} actions, played open loop",
            "resolution": self.resolution,
            "cameras": dict(zip(self.cameras, MODEL_CAMERAS)),
            "orientation": "upright, mirrored left to right",
        }

    def description(self) -> dict:
        """What a user of its episodes must know: the environment's part of meta/worldenv.json."""
        return {
            "environment": f"LIBERO (robosuite, MuJoCo), {self.suite}, sparse success",
            "control_hz": CONTROL_HZ,
            "environment_hz": CONTROL_HZ,
            "action_repeat": 1,
            "action": {
                "names": list(ACTION_NAMES),
                "meaning": "dx, dy, dz and drx, dry, drz: where the operational-space controller's target lies from the hand, 1 is 0.05 m or 0.5 rad "
                "away; gripper -1 opens, +1 closes",
                "range": [-1, 1],
                "unit": [[METRES_PER_STEP if column == row and row < 3 else 0.0 for column in range(7)] for row in range(8)],
                "unit_meaning": "state x action: metres by which a control step with action 1 moves the hand once it is under way",
            },
            "state": {"names": list(STATE_NAMES), "units": ["m"] * 3 + ["axis-angle, rad"] * 3 + ["m"] * 2, "opening": OPENING},
            "table": max(TABLES[kind] for kind in self._scenes()),
            "cameras": self._cameras(),
        }

    def _scenes(self) -> set[str]:
        """Kinds of scene, as AGENT_VIEWS and TABLES know them."""
        return {self.suite if self.suite in AGENT_VIEWS else name.partition("_SCENE")[0] for name in self.tasks}

    def _cameras(self) -> dict[str, dict]:
        """{camera: its description}. Where the agent view stands is told if that is the same in all tasks; the wrist camera moves."""
        from ..data.sources.geometry import mujoco_camera
        from ..data.sources.source import MIRRORED

        size = [self.resolution, self.resolution]
        found = {camera: {"orientation": MIRRORED, "size": size} for camera in self.cameras}
        views = {AGENT_VIEWS[kind] for kind in self._scenes()}
        if len(views) == 1:
            position, turn = views.pop()
            model = f'<mujoco><worldbody><camera name="agentview" pos="{position}" quat="{turn}"/></worldbody></mujoco>'
            found[self.cameras[0]] |= mujoco_camera(model, "agentview", size, mirrored=True)
        return found

    def compared(self, description: dict) -> dict[str, tuple]:
        """{what: (in a dataset's description, here)}: must be equal for its episodes to have been seen and moved as this environment's are."""
        pairs = {"control_hz": (description.get("control_hz"), CONTROL_HZ)}
        for what, names in (("state", STATE_NAMES), ("action", ACTION_NAMES)):
            pairs[f"length of {what}"] = (len(description.get(what, {}).get("names", ())), len(names))
        for camera, here in self._cameras().items():
            there = description.get("cameras", {}).get(camera, {})
            pairs[f"size of camera {camera}"] = (there.get("size"), here["size"])
            if there.get("orientation") is not None:
                pairs[f"orientation of camera {camera}"] = (there["orientation"], here["orientation"])
        return pairs


class LiberoContext:
    """What a worker process has once: LIBERO pointed at its files, and a GL context, which all instances share.

    Raises UserError where the interpreter or the assets cannot do what is asked of them.
    """

    def __init__(self, config: LiberoConfig):
        root = find_package()
        assets = find_assets(config.assets, root)
        self.folder = tempfile.TemporaryDirectory(prefix="worldenv-libero-")
        point_at(root, assets, Path(self.folder.name))
        from mujoco.gl_context import GLContext

        self.gl = GLContext(config.resolution, config.resolution)
        self.gl.make_current()
        atexit.register(self.gl.free)  # before MuJoCo ends EGL, after which nothing can be freed without a complaint


class LiberoTask:
    """One task, one instance of LIBERO, no vectors: what a worker process holds one of for each row."""

    kept = False  # while its row plays another task: it takes 100 MB, and as long to make as to reset

    def __init__(self, name: str, config: LiberoConfig):
        logging.disable(logging.WARNING)  # robosuite misses a settings file of the user's
        from libero.libero import get_libero_path
        from libero.libero.envs.env_wrapper import ControlEnv

        logging.disable(logging.NOTSET)
        self.name, self.config, self.upload = name, config, None
        self.init_states = read_init_states(Path(get_libero_path("init_states")) / config.suite / f"{name}.pruned_init")
        scene = Path(get_libero_path("bddl_files")) / config.suite / f"{name}.bddl"
        self.env = ControlEnv(bddl_file_name=str(scene), has_offscreen_renderer=False, use_camera_obs=False, ignore_done=True)

    def reset(self, seed: int, state: np.ndarray | None = None) -> dict:
        """Start the episode that `seed` names (see above), or from a flattened MuJoCo state (D,). Returns robosuite's own observation."""
        import mujoco

        number = evaluation_number(seed)
        if state is None and number is not None and number < len(self.init_states):
            state = self.init_states[number]
        np.random.seed(seed % 2**32)  # LIBERO draws from here
        self.observation = self.env.reset()
        if state is not None:
            self.observation = self.env.set_init_state(state)
        for _ in range(self.config.settle):
            self.step(SETTLE)
        self.model, self.data = self.env.sim.model._model, self.env.sim.data._data  # a reset makes new ones
        self.scene = mujoco.MjvScene(self.model, maxgeom=1000)
        return self.observation

    def step(self, action: np.ndarray) -> tuple[dict, bool]:
        """One control step of 50 ms with action (7,) in [-1, 1]. True while LIBERO calls the task achieved."""
        self.observation, _, success, _ = self.env.step(np.clip(np.asarray(action, dtype=np.float64), -1, 1))
        return self.observation, achieved(success, self.name)

    def state(self) -> np.ndarray:
        """Proprioception (8,) float32: see STATE_NAMES."""
        seen = self.observation
        return np.concatenate([seen["robot0_eef_pos"], axis_angle(seen["robot0_eef_quat"]), seen["robot0_gripper_qpos"]]).astype(np.float32)

    def pictures(self, context: LiberoContext) -> dict[str, np.ndarray]:
        """{camera: RGB (H, W, 3) uint8}, upright and mirrored. `context` is current in this process, nothing else is asked of it."""
        import mujoco

        size = self.config.resolution
        if self.upload is None:
            self.model.vis.global_.offwidth = self.model.vis.global_.offheight = size
            self.upload = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.upload)
        option, viewport = mujoco.MjvOption(), mujoco.MjrRect(0, 0, size, size)
        option.geomgroup[0] = 0  # the shapes that collide, which are not those that are seen
        found = {}
        for name, model_camera in zip(self.config.cameras, MODEL_CAMERAS):
            camera, picture = mujoco.MjvCamera(), np.empty((size, size, 3), dtype=np.uint8)
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self.model.camera(model_camera).id
            mujoco.mjv_updateScene(self.model, self.data, option, None, camera, mujoco.mjtCatBit.mjCAT_ALL, self.scene)
            mujoco.mjr_render(viewport, self.scene, self.upload)
            mujoco.mjr_readPixels(picture, None, viewport, self.upload)
            found[name] = picture[::-1, ::-1]
        return found


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """(x, y, z, w) -> (3,) radians along the axis, between 0 and 2 pi, as LIBERO's data sets have it."""
    *vector, w = np.asarray(quaternion, dtype=np.float64)
    w = np.clip(w, -1, 1)
    length = np.sqrt(1 - w * w)
    return np.zeros(3) if np.isclose(length, 0) else np.array(vector) * 2 * np.arccos(w) / length
