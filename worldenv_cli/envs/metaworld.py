"""One Meta-World task as the toolkit sees it: pictures from a free camera, a 4-number proprioception, actions held for several steps.

Three things of Meta-World 3 are mended here (each has a test):
* `reset` moves bodies without `mj_forward`, so that the first picture shows the previous episode's layout;
* the goal in the observation of the scripted experts is clipped to zero by a cached observation space;
* shadows and multisampling cost nine tenths of the rendering time and tell nothing at these resolutions.
"""

import difflib
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from ..config import Config
from ..errors import UserError
from .camera import CameraConfig
from .metaworld_tasks import TASKS
from .success import achieved

STATE_NAMES = ("hand_x", "hand_y", "hand_z", "gripper_opening")  # metres, metres, metres, 0 closed .. 1 open
ACTION_NAMES = ("dx", "dy", "dz", "grip")  # each in [-1, 1]: 1 = 0.01 m of mocap target per environment step; grip +1 closes
METRES_PER_STEP = 0.01  # by which an action of 1 moves the controller's target in an environment step
HIDDEN_GROUP = 5  # MuJoCo draws geom groups 0-2 unless told otherwise
ENVIRONMENT_HZ = 80  # 5 physics steps of 2.5 ms
PACKAGES = ("metaworld", "mujoco")  # whose versions decide what an episode looks like


class MetaWorldConfig(Config):
    """Tasks with their instructions, and the protocol that every rollout in them follows."""

    tasks: dict[str, str] = Field(min_length=1, description="Instruction of each Meta-World task, as name: instruction")
    action_repeat: int = Field(4, ge=1, description="Environment steps for which an action is held")
    chunk: int = Field(4, ge=1, description="Actions (control steps) in an action chunk")
    horizon: int = Field(128, ge=1, description="Environment steps in an episode, at most")
    resolution: int = Field(64, ge=16, description="Pixels on a side of the pictures")
    camera: CameraConfig = Field(CameraConfig(), description="The camera that all models look through")
    workers: int = Field(2, ge=1, description="Processes that run the real environment")
    rows: int = Field(16, ge=1, description="Episodes that run side by side, over all workers")
    worker_timeout: float = Field(60, gt=0, description="Seconds that a worker may take for each row it is asked about; then it is started anew")
    linger: int = Field(1, ge=0, description="Action chunks that are still played after a success, where an episode ends with it")
    renderer: Literal["auto", "egl", "osmesa", "glfw"] = Field("auto", description="How MuJoCo renders; auto: the first that works here")
    python: str | None = Field(None, description="Python interpreter of the workers, if not this one")
    kind: Literal["metaworld"] = Field("metaworld", description="Which real environment")

    title: ClassVar[str] = "Meta-World"
    robot: ClassVar[str] = "sawyer"
    state_names: ClassVar[tuple[str, ...]] = STATE_NAMES
    action_names: ClassVar[tuple[str, ...]] = ACTION_NAMES
    command_unit: ClassVar[tuple[float, ...] | None] = None  # compared by action_repeat
    gripper: ClassVar[dict] = {"dimension": 3, "closes": 1}

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: dict[str, str]) -> dict[str, str]:
        for name in tasks:
            if name not in TASKS:
                near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.5)
                raise ValueError(f"Meta-World has no task {name!r}" + (f", did you mean {near[0]}?" if near else f"; it has {', '.join(TASKS)}"))
        return tasks

    @property
    def cameras(self) -> tuple[str, ...]:
        return (self.camera.name,)

    @property
    def chunks(self) -> int:
        """Action chunks in a full episode."""
        return self.horizon // (self.action_repeat * self.chunk)

    @property
    def control_hz(self) -> int:
        return ENVIRONMENT_HZ // self.action_repeat

    @property
    def protocol(self) -> dict:
        """What a reader of its success rates must know."""
        return {
            "environment": "Meta-World 3, success at any time within the horizon",
            "horizon": f"{self.horizon} environment steps",
            "action repeat": self.action_repeat,
            "chunk": f"{self.chunk} actions, played open loop",
            "resolution": self.resolution,
            "camera": self.camera.model_dump(mode="json"),
        }

    def description(self) -> dict:
        """What a user of its episodes must know: the environment's part of meta/worldenv.json."""
        metre = METRES_PER_STEP * self.action_repeat
        return {
            "environment": "Meta-World (MuJoCo), sparse success",
            "control_hz": self.control_hz,
            "environment_hz": ENVIRONMENT_HZ,
            "action_repeat": self.action_repeat,
            "action": {
                "names": list(ACTION_NAMES),
                "meaning": "dx, dy, dz move the target of the hand's position controller, each held for action_repeat environment steps; "
                "grip +1 closes",
                "range": [-1, 1],
                "unit": [[metre if column == row and row < 3 else 0.0 for column in range(len(ACTION_NAMES))] for row in range(len(STATE_NAMES))],
                "unit_meaning": "state x action: metres by which a control step with action 1 moves the controller's target",
            },
            "state": {"names": list(STATE_NAMES), "units": ["m", "m", "m", "0 closed .. 1 open"], "opening": [0.0, 0.0, 0.0, 1.0]},
            "table": 0.0,
            "cameras": {
                self.camera.name: {
                    "intrinsics": self.camera.intrinsics(self.resolution).tolist(),
                    "extrinsics": self.camera.extrinsics().tolist(),
                    "orientation": "upright, not mirrored",
                }
            },
        }

    def compared(self, description: dict) -> dict[str, tuple]:
        """{what: (in a dataset's description, here)}: must be equal for its episodes to have been seen and moved as this environment's are."""
        camera = description.get("cameras", {}).get(self.camera.name, {})
        return {
            "control_hz": (description.get("control_hz"), self.control_hz),
            "action_repeat": (description.get("action_repeat"), self.action_repeat),
            f"camera {self.camera.name}": (camera.get("intrinsics"), self.camera.intrinsics(self.resolution).tolist()),
        }


class MetaWorldTask:
    """One task, one MuJoCo instance, no vectors: what a worker process holds a few of."""

    kept = True  # by its row while that plays other tasks: making one takes a second, its memory is small

    def __init__(self, name: str, config: MetaWorldConfig):
        import mujoco
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        if name not in ALL_V3_ENVIRONMENTS:
            import difflib
            from importlib.metadata import version

            near = difflib.get_close_matches(name, ALL_V3_ENVIRONMENTS, n=1)
            raise UserError(f"env.tasks: Meta-World {version('metaworld')} has no task {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        self.config = config
        self.name = name
        self.expert = None
        self.env = ALL_V3_ENVIRONMENTS[name]()
        self.env._freeze_rand_vec = False
        self.env.seeded_rand_vec = True
        self.env._set_task_called = True
        self.env._partially_observable = False
        self.env.__dict__.pop("sawyer_observation_space", None)  # cached with the goal's bounds at zero
        self.model, self.data = self.env.model, self.env.data
        self.model.vis.quality.shadowsize = 0
        self.model.vis.quality.offsamples = 0
        self.model.vis.global_.fovy = config.camera.fovy
        self.scene = mujoco.MjvScene(self.model, maxgeom=1000)
        for effect in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_SKYBOX):
            self.scene.flags[effect] = False
        self.option = mujoco.MjvOption()
        self.camera = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(self.model, self.camera)
        self.camera.lookat[:] = config.camera.lookat
        self.camera.distance = config.camera.distance
        self.camera.azimuth, self.camera.elevation = config.camera.azimuth, config.camera.elevation
        self.geom_group = self.model.geom_group.copy()
        self.world_to_camera = config.camera.extrinsics()
        self.half_angle = np.deg2rad(config.camera.fovy) / 2

    def reset(self, seed: int) -> np.ndarray:
        """Start the episode that `seed` names; the same seed gives the same layout. Returns Meta-World's own 39-number observation."""
        import mujoco

        self.env.seed(seed)
        self.env.reset()
        mujoco.mj_forward(self.model, self.data)
        self.env._prev_obs = self.env._get_curr_obs_combined_no_goal()
        self.expert = None
        self.observation = self.env._get_obs()
        return self.observation

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """Hold one action for `action_repeat` environment steps. True once Meta-World calls any of them a success."""
        success = False
        for _ in range(self.config.action_repeat):
            self.observation, _, _, _, info = self.env.step(np.clip(action, -1, 1).astype(np.float32))
            success |= achieved(info["success"], self.name)
        return self.observation, success

    def expert_action(self) -> np.ndarray:
        """What the scripted expert does next (4,), seeing Meta-World's own observation."""
        self.expert = self.expert or expert(self.name)
        return np.clip(self.expert.get_action(self.observation), -1, 1)

    def state(self) -> np.ndarray:
        """Proprioception (4,) float32: see STATE_NAMES."""
        return self.env._get_curr_obs_combined_no_goal()[:4].astype(np.float32)

    def pictures(self, context: "RenderContext") -> dict[str, np.ndarray]:
        """{camera: RGB (H, W, 3) uint8}"""
        return {self.config.camera.name: self.render(context)}

    def render(self, context: "RenderContext") -> np.ndarray:
        """RGB (H, W, 3) uint8, upright, not mirrored."""
        import mujoco

        size = self.config.resolution
        self.model.geom_group[:] = np.where(self._in_view(), self.geom_group, HIDDEN_GROUP)
        mujoco.mjv_updateScene(self.model, self.data, self.option, None, self.camera, mujoco.mjtCatBit.mjCAT_ALL, self.scene)
        picture = np.empty((size, size, 3), dtype=np.uint8)
        viewport = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context.of(self.name, self.model))
        mujoco.mjr_render(viewport, self.scene, context.of(self.name, self.model))
        mujoco.mjr_readPixels(picture, None, viewport, context.of(self.name, self.model))
        return picture[::-1]

    def _in_view(self) -> np.ndarray:
        """(geoms,) bool: bounding spheres that touch the camera's cone. The robot's base is two fifths of all triangles and never seen."""
        centre = self.data.geom_xpos @ self.world_to_camera[:3, :3].T + self.world_to_camera[:3, 3]
        off_axis = np.abs(centre[:, :2]) * np.cos(self.half_angle) - centre[:, 2:] * np.sin(self.half_angle)
        return (off_axis.max(1) <= self.model.geom_rbound) | (self.model.geom_rbound == 0)  # a plane has no bounding sphere


class RenderContext:
    """One GL context for a process and one set of uploaded meshes for each task: instances of a task share it."""

    def __init__(self, config: MetaWorldConfig):
        from mujoco.gl_context import GLContext

        self.resolution = config.resolution
        self.pixel = 2 * config.camera.distance * np.tan(np.deg2rad(config.camera.fovy) / 2) / config.resolution  # metres
        self.gl = GLContext(self.resolution, self.resolution)
        self.gl.make_current()
        self.uploads: dict = {}

    def of(self, name: str, model):
        """The uploaded meshes of a task, coarsened to half a pixel: a software renderer's time goes into triangles nobody can see."""
        import mujoco

        if name not in self.uploads:
            model.vis.global_.offwidth = model.vis.global_.offheight = self.resolution
            fine = {field: getattr(model, field).copy() for field in MESH_FIELDS}
            coarsen_meshes(model, self.pixel / 2)
            self.uploads[name] = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            for field, values in fine.items():
                getattr(model, field)[:] = values
        return self.uploads[name]


MESH_FIELDS = ("mesh_facenum", "mesh_face", "mesh_facenormal", "mesh_facetexcoord")


def coarsen_meshes(model, cell: float) -> None:
    """Cluster the vertices of every mesh in cubes of `cell` metres and drop the faces that collapse or repeat, in place."""
    for mesh in range(model.nmesh):
        first_vertex, vertices = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        first_face, faces = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        cubes = np.floor(model.mesh_vert[first_vertex : first_vertex + vertices] / cell).astype(np.int64)
        _, representative, cluster = np.unique(cubes, axis=0, return_index=True, return_inverse=True)
        face = representative[cluster.reshape(-1)][model.mesh_face[first_face : first_face + faces]]
        whole = np.flatnonzero((face[:, 0] != face[:, 1]) & (face[:, 1] != face[:, 2]) & (face[:, 0] != face[:, 2]))
        _, unique = np.unique(np.sort(face[whole], axis=1), axis=0, return_index=True)
        kept = whole[np.sort(unique)]
        if len(kept) == 0:
            continue
        rows = slice(first_face, first_face + len(kept))
        model.mesh_face[rows] = face[kept]
        model.mesh_facenormal[rows] = model.mesh_facenormal[first_face + kept]
        model.mesh_facetexcoord[rows] = model.mesh_facetexcoord[first_face + kept]
        model.mesh_facenum[mesh] = len(kept)


def expert(name: str):
    """Meta-World's scripted expert of a task: `get_action(observation) -> action (4,)`."""
    from metaworld.policies import ENV_POLICY_MAP

    return ENV_POLICY_MAP[name]()
