"""LIBERO itself, where an interpreter that has it is named:

WORLDENV_LIBERO_PYTHON=.../bin/python WORLDENV_LIBERO_ASSETS=.../assets pytest tests/test_envs_libero_real.py
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from recorded import FIXTURES

from worldenv_cli.envs.libero import LiberoConfig
from worldenv_cli.envs.libero_tasks import SUITES
from worldenv_cli.envs.rendering import choose_backend
from worldenv_cli.envs.starts import PURPOSES
from worldenv_cli.envs.vector import RealVectorEnv
from worldenv_cli.errors import UserError

PYTHON, ASSETS = os.environ.get("WORLDENV_LIBERO_PYTHON"), os.environ.get("WORLDENV_LIBERO_ASSETS")
pytestmark = pytest.mark.skipif(
    not (PYTHON and os.access(PYTHON, os.X_OK) and (ASSETS is None or os.path.isdir(ASSETS))),
    reason="WORLDENV_LIBERO_PYTHON names no interpreter here, or WORLDENV_LIBERO_ASSETS no folder",
)
SOUP = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
MILK = "pick_up_the_milk_and_place_it_in_the_basket"
SCENES = [("libero_spatial", 0), ("libero_object", 0), ("libero_goal", 0), ("libero_10", 0), ("libero_10", 2), ("libero_10", 9)]
INSIDE = """
import json, sys
import numpy as np
from importlib.util import module_from_spec, spec_from_file_location
from worldenv_cli.envs.libero import LiberoConfig, LiberoContext, LiberoTask
from worldenv_cli.envs.libero_package import find_package
soup, assets, scenes, demo = json.loads(sys.argv[1])
config = LiberoConfig(suite="libero_object", tasks=[soup], assets=assets, settle=0, resolution=128, cameras=("image", "image2"))
context, task, found = LiberoContext(config), LiberoTask(soup, config), {}

spec = spec_from_file_location("names", find_package() / "benchmark/libero_suite_task_map.py")
spec.loader.exec_module(names := module_from_spec(spec))
found["names"] = names.libero_task_map

starts = []
for seed in (9_000_003, 9_000_050, 3):
    task.reset(seed)
    starts.append([bool(np.array_equal(task.env.get_sim_state(), state)) for state in task.init_states])
found["starts"] = starts

data, model = task.data, task.model
moved = lambda: {"state": data.joint("alphabet_soup_1_joint0").qpos, "basket": data.body("basket_1_main").xpos}
before = task.step(np.zeros(7))[1]
moved()["state"][:3] = moved()["basket"] + [0, 0, 0.1]
after = [task.step(np.zeros(7))[1] for _ in range(20)]
found["success"] = [before, after[-1]]

if demo:
    demo, errors, shown = np.load(demo), [], []
    task.reset(0, demo["states"][0])
    task.env.robots[0].controller.update(force=True)  # a recording goes on from here, an evaluation settles first
    for t, action in enumerate(demo["actions"]):
        task.step(action)
        errors.append(np.abs(task.state() - demo["expected"][t]))
        shown.append([np.abs(task.pictures(context)[name].astype(int) - demo[name][t]).mean() for name in config.cameras])
    found["replay"] = [np.array(errors).tolist(), np.array(shown).tolist()]

from libero.libero.envs.env_wrapper import OffScreenRenderEnv
task.reset(7)
mine = task.pictures(context)
np.random.seed(7)
theirs = OffScreenRenderEnv(bddl_file_name=task.env.env.bddl_file_name, camera_heights=128, camera_widths=128)
np.random.seed(7)
seen = theirs.reset()
pairs = (("image", "agentview_image"), ("image2", "robot0_eye_in_hand_image"))
found["pictures"] = [int(np.abs(mine[a].astype(int) - seen[b][::-1, ::-1]).max()) for a, b in pairs]
theirs.close()

poses = []
for suite, name in scenes:
    other = LiberoTask(name, LiberoConfig(suite=suite, assets=assets, settle=0))
    other.reset(0)
    camera = other.data.camera("agentview")
    poses.append([camera.xpos.tolist(), camera.xmat.tolist(), other.model.cam_fovy[camera.id]])
found["poses"] = poses
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    """What LIBERO's own interpreter finds."""
    demo, recorded = None, FIXTURES / "libero_hdf5" / f"{SOUP}_demo.hdf5"
    if recorded.exists():
        import h5py

        demo = str(tmp_path_factory.mktemp("demo") / "demo.npz")
        with h5py.File(recorded) as file:
            data = file["data/demo_0"]
            pictures = {"image": data["obs/agentview_rgb"][()][:, ::-1, ::-1], "image2": data["obs/eye_in_hand_rgb"][()][:, ::-1, ::-1]}
            expected = np.concatenate([data["obs/ee_states"], data["obs/gripper_states"]], 1)
            np.savez(demo, states=data["states"], actions=data["actions"], expected=expected, **pictures)
    scenes = [(suite, SUITES[suite][number]) for suite, number in SCENES]
    environment = {**os.environ, "MUJOCO_GL": choose_backend("auto", PYTHON), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([PYTHON, "-c", INSIDE, json.dumps([SOUP, ASSETS, scenes, demo])], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_names_starts_and_pictures_are_liberos(inside):
    assert {suite: tuple(names) for suite, names in inside["names"].items() if suite in SUITES} == SUITES
    third, beyond, training = np.array(inside["starts"])
    assert np.flatnonzero(third).tolist() == [3] and not beyond.any() and not training.any()
    assert inside["success"] == [False, True]
    assert inside["pictures"] == [0, 0]  # from robosuite's own, turned


def test_cameras_stand_where_the_description_says(inside):
    for (suite, number), (position, axes, fovy) in zip(SCENES, inside["poses"]):
        config = LiberoConfig(suite=suite, tasks=[SUITES[suite][number]], resolution=100)
        told = config.description()["cameras"]["image"]
        expected = np.array(told["extrinsics"]) @ [*position, 1]
        np.testing.assert_allclose(expected, [0, 0, 0, 1], atol=1e-6)
        np.testing.assert_allclose(np.array(told["extrinsics"])[:3, :3], np.diag([1, -1, -1]) @ np.reshape(axes, (3, 3)).T, atol=1e-6)
        assert -told["intrinsics"][0][0] == told["intrinsics"][1][1] == pytest.approx(50 / np.tan(np.deg2rad(fovy) / 2))


def test_a_recorded_demonstration_plays_again(inside):
    """Its file does not hold what the gripper had been told before, nor the pose that the arm's null space is drawn to."""
    if "replay" not in inside:
        pytest.skip(f"{FIXTURES / 'libero_hdf5'} is not here")
    errors, shown = map(np.array, inside["replay"])
    assert errors[:, :3].max() < 1e-3 and errors[:, 3:6].max() < 5e-3 and errors[8:, 6:].max() < 1e-3
    assert shown[8:].max() < 0.5  # grey levels, on average


@pytest.fixture(scope="module")
def libero():
    """Two rows in one worker."""
    chosen = {"tasks": [SOUP, MILK], "cameras": ("image", "image2"), "resolution": 64, "chunk": 2, "horizon": 5, "rows": 2, "workers": 1}
    env = RealVectorEnv(LiberoConfig(suite="libero_object", python=PYTHON, assets=ASSETS, **chosen))
    yield env
    env.close()
    assert [worker.process.poll() for worker in env.workers] == [0]


def test_rows_are_episodes(libero):
    chunks = np.random.default_rng(0).uniform(-1, 1, libero.action_space.shape).astype(np.float32)
    chunks[1] = chunks[0]
    seen = []
    for starts_ in ([(SOUP, 1), (SOUP, 1)], [(MILK, 1), (SOUP, 1)], [(SOUP, 2), (SOUP, PURPOSES["evaluation"])]):
        first, _ = libero.reset(options={"starts": starts_})
        steps = [libero.step(chunks) for _ in range(libero.config.chunks)]
        assert first in libero.observation_space and steps[-1][0] in libero.observation_space
        assert first["instruction"] == tuple(libero.config.tasks[task] for task, _ in starts_)
        assert [step[3].tolist() for step in steps] == [[False] * 2, [True] * 2]  # of 5 steps the two whole chunks
        seen.append([(first["images"][camera], steps[0][4]["frames"][camera], steps[0][4]["states"]) for camera in ("image", "image2")])
    assert seen[0][0][1].shape == (2, 2, 64, 64, 3) and seen[0][0][2].shape == (2, 2, 8)
    for camera in range(2):
        for part in range(3):
            alone, beside, others = seen[0][camera][part], seen[1][camera][part], seen[2][camera][part]
            np.testing.assert_array_equal(alone[0], alone[1])
            np.testing.assert_array_equal(alone[0], beside[1])
        assert not np.array_equal(seen[0][camera][0][0], seen[2][camera][0][0]) and not np.array_equal(others[0], others[1])
    assert libero.versions["mujoco"] <= "3.3.2" and libero.versions["robosuite"].startswith("1.4")


def test_missing_assets_are_told(tmp_path):
    with pytest.raises(UserError, match=rf"^env.assets {tmp_path}: has no folder scenes, expected LIBERO's meshes and textures; hf download "):
        RealVectorEnv(LiberoConfig(suite="libero_object", python=PYTHON, assets=str(tmp_path), workers=1))
