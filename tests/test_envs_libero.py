"""LIBERO: its configuration everywhere; the environment itself where an interpreter that has it is named.

WORLDENV_LIBERO_PYTHON=.../bin/python WORLDENV_LIBERO_ASSETS=.../assets pytest tests/test_envs_libero.py
"""

import io
import json
import pickle
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from recorded import libero_file
from scipy.spatial.transform import Rotation

from worldenv_cli.data import ingest as ingestion
from worldenv_cli.data.sources import SourceConfig, open_source
from worldenv_cli.envs.libero import HORIZONS, LiberoConfig, axis_angle
from worldenv_cli.envs.libero_package import check_mujoco, read_init_states
from worldenv_cli.envs.libero_tasks import SUITES, instruction
from worldenv_cli.envs.starts import PURPOSES, evaluation_number, starts
from worldenv_cli.envs.vector import RealVectorEnv
from worldenv_cli.errors import UserError
from worldenv_cli.recipe import load_recipe, resolved_yaml
from worldenv_cli.stage_runner import open_run
from worldenv_cli.stages import ingest

SOUP = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
RECIPE = f"name: soup\nenv:\n  kind: libero\n  suite: libero_object\n  tasks: [{SOUP}]\n  resolution: 16\n  cameras: [image, wrist_image]\n"


# Configuration


def test_suites_tasks_and_horizons():
    assert {suite: len(tasks) for suite, tasks in SUITES.items()} == dict.fromkeys(SUITES, 10) | {"libero_90": 90}
    assert instruction("KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet") == "close the top drawer of the cabinet"
    assert instruction(SOUP) == "pick up the alphabet soup and place it in the basket"
    every = LiberoConfig(suite="libero_goal")
    assert list(every.tasks) == list(SUITES["libero_goal"]) and every.tasks["turn_on_the_stove"] == "turn on the stove"
    assert {suite: LiberoConfig(suite=suite).horizon for suite in SUITES} == HORIZONS
    some = LiberoConfig(suite="libero_goal", tasks=["turn_on_the_stove"], horizon=100, chunk=16)
    assert some.tasks == {"turn_on_the_stove": "turn on the stove"} and (some.horizon, some.chunks, some.control_hz) == (100, 6, 20)
    assert LiberoConfig(suite="libero_goal", tasks={"turn_on_the_stove": "heat it"}).tasks == {"turn_on_the_stove": "heat it"}


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"tasks": ["turn_on_the_stov"]}, "libero_goal has no task 'turn_on_the_stov'; did you mean 'turn_on_the_stove'"),
        ({"tasks": {SOUP: "soup"}}, f"libero_goal has no task '{SOUP}'"),
        ({"suite": "libero_goals"}, "'libero_goal'"),
        ({"cameras": ("a", "b", "c")}, "at most 2"),
        ({"action_repeat": 4}, "Input should be 1"),
    ],
)
def test_mistakes_in_the_configuration(changed, said):
    with pytest.raises(ValidationError, match=said):
        LiberoConfig(**({"suite": "libero_goal"} | changed))


def recipe(folder: Path, *overrides: str):
    (folder / "my.yaml").write_text(RECIPE)
    return load_recipe(folder / "my.yaml", overrides)


def test_recipes_name_their_environment(tmp_path):
    read = recipe(tmp_path)
    assert read.env == LiberoConfig(suite="libero_object", tasks=[SOUP], resolution=16, cameras=("image", "wrist_image"))
    assert read.policy.state_size == 8 and read.policy.action_size == 7 and read.simulator.camera == "image"
    (tmp_path / "again.yaml").write_text(resolved_yaml(read))
    assert load_recipe(tmp_path / "again.yaml") == read
    assert recipe(tmp_path, "policy.width=48").policy.camera == "image"  # what a section does not say is still the environment's to say
    for override, said in (
        ("env.kind=maniskill", "env.kind: found 'maniskill', expected 'metaworld' or 'libero'"),
        ("env.kind=metaworld", "unknown setting env.suite; env has tasks, action_repeat, "),
        ("env.camera.fovy=3", "unknown setting env.camera, did you mean cameras?; env has kind, suite, "),
        ("env.tasks=[soup]", "env.tasks: libero_object has no task 'soup'"),
    ):
        with pytest.raises(UserError) as told:
            recipe(tmp_path, override)
        assert said in str(told.value) and "\n" not in str(told.value)


def test_where_a_run_is_played_is_no_setting_of_its_artifacts(tmp_path):
    here, there = recipe(tmp_path), recipe(tmp_path, "env.python=/there/python", "env.assets=/there/assets", "env.workers=1")
    assert open_run(here, tmp_path / "a").settings("env") == open_run(there, tmp_path / "b").settings("env")
    assert open_run(here, tmp_path / "a").settings("env") != open_run(recipe(tmp_path, "env.settle=0"), tmp_path / "b").settings("env")


def test_only_evaluations_have_recorded_starts():
    assert [evaluation_number(seed) for _, seed in starts("evaluation", ["a"], 3, offset=4)] == [4, 5, 6]
    for purpose in set(PURPOSES) - {"evaluation"}:
        assert {evaluation_number(seed) for run in (0, 7, 99) for _, seed in starts(purpose, ["a"], 100, run_seed=run)} == {None}


def test_a_camera_is_placed_where_all_tasks_agree():
    cameras = LiberoConfig(suite="libero_10", cameras=("image", "image2")).description()["cameras"]
    assert set(cameras["image"]) == set(cameras["image2"]) == {"orientation", "size"}
    kitchen = [name for name in SUITES["libero_10"] if name.startswith("KITCHEN")]
    cameras = LiberoConfig(suite="libero_10", tasks=kitchen, cameras=("image", "image2")).description()["cameras"]
    assert "extrinsics" in cameras["image"] and "extrinsics" not in cameras["image2"]
    unit = np.array(LiberoConfig(suite="libero_10").description()["action"]["unit"])
    assert unit.shape == (8, 7) and np.count_nonzero(unit) == 3


# Demonstrations


def ingested(folder: Path):
    """A data set in LIBERO's own format, 16 pixels a side, made into one of ours."""
    libero_file(folder / f"{SOUP}_demo.hdf5")
    ingestion.ingest_sources([open_source(folder / f"{SOUP}_demo.hdf5", SourceConfig())], folder / "set", ingestion.Selection())
    return folder / "set"


def test_demonstrations_are_those_of_a_source(tmp_path):
    run = open_run(recipe(tmp_path, f"ingest.source={ingested(tmp_path)}"), tmp_path / "run")
    ingest(run)
    episodes = run.episodes("demonstrations")
    assert [(episode.info["task"], episode.states.shape[1], episode.actions.shape[1]) for episode in episodes] == [(SOUP, 8, 7)] * 2
    assert set(episodes[0].frames) == {"image", "wrist_image"}
    told = json.loads((run.path("demonstrations") / "meta/worldenv.json").read_text())
    assert told["control_hz"] == 20 and told["state"]["names"][-1] == "finger_right" and "extrinsics" in told["cameras"]["image"]


def test_without_a_source_it_is_told_at_once(tmp_path):
    for dry_run in (False, True):
        with pytest.raises(UserError, match="^ingest.source is not set, and LIBERO has no scripted experts; name a dataset"):
            ingest(open_run(recipe(tmp_path), tmp_path / "run", dry_run=dry_run))


@pytest.mark.parametrize(
    "override, said",
    [
        ("env.resolution=32", r"size of camera image is \[16, 16\], but \[32, 32\] in the recipe's env"),
        ("env.cameras=[image, image2]", r"size of camera image2 is None, but \[16, 16\]"),
        ("env.tasks=[]", "no episode of env.tasks.pick_up_the_bbq_sauce_and_place_it_in_the_basket"),
    ],
)
def test_a_source_that_does_not_fit_is_told(tmp_path, override, said):
    with pytest.raises(UserError, match=said):
        ingest(open_run(recipe(tmp_path, f"ingest.source={ingested(tmp_path)}", override), tmp_path / "run"))


# Parts


def test_axis_angle():
    rotations = Rotation.random(20, random_state=0)
    quaternions = np.where(rotations.as_quat()[:, 3:] < 0, -1, 1) * rotations.as_quat()
    np.testing.assert_allclose([axis_angle(q) for q in quaternions], rotations.as_rotvec(), atol=1e-9)
    assert np.linalg.norm(axis_angle(-quaternions[0])) > np.pi  # the other sign goes the other way round, as in the data sets
    assert not axis_angle(np.array([0, 0, 0, 1.0])).any()


def init_states_file(path: Path, content) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    return path


def test_initial_states_are_read_without_torch_and_nothing_else_is(tmp_path):
    states = np.random.default_rng(0).normal(size=(3, 5))
    np.testing.assert_array_equal(read_init_states(init_states_file(tmp_path / "a", states)), states)
    with pytest.raises(pickle.UnpicklingError, match="expected arrays only"):
        read_init_states(init_states_file(tmp_path / "b", io.BytesIO))


def test_newer_mujocos_are_refused():
    for version in ("3.0.0", "3.3", "3.3.2"):
        check_mujoco(version)
    for version in ("3.3.3", "3.4.0rc1", "4.0.0"):
        with pytest.raises(UserError, match=rf"^env.python: .* has mujoco {version}, expected 3.3.2 or older .*; pip install mujoco==3.3.2 there$"):
            check_mujoco(version)


@pytest.mark.skipif(find_spec("libero") is not None, reason="this interpreter has LIBERO")
def test_an_interpreter_without_libero_is_told():
    with pytest.raises(
        UserError, match=r"^env.python: .* has no LIBERO; make a Python environment for it \(pip install hf-libero==0.1.4 mujoco==3.3.2"
    ):
        RealVectorEnv(LiberoConfig(suite="libero_goal", workers=1))


def test_workers_need_nothing_heavy():
    """LIBERO's interpreter has what LIBERO needs, which need not be torch, gymnasium or this package's other requirements."""
    code = "import sys, worldenv_cli.envs.worker; print(*{name.partition('.')[0] for name in sys.modules})"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "gymnasium", "scipy", "pyarrow", "mujoco", "metaworld", "libero"} & set(seen)
