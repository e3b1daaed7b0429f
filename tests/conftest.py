"""What the tests share, made once a session: real episodes of a two-task miniature, models trained on them for a moment, and a finished run."""

import contextlib
import copy
import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small lose more to waiting threads than they win

MINI = Path(__file__).with_name("mini.yaml")
COFFEE, DRAWER = "coffee-button-v3", "drawer-close-v3"


@pytest.fixture(scope="session", autouse=True)
def renderer():
    """MuJoCo chooses how to render when it is imported, in this process by whichever test is first."""
    from worldenv_cli.envs.rendering import choose_backend

    os.environ.setdefault("MUJOCO_GL", choose_backend())


@pytest.fixture(scope="session")
def mini():
    """The miniature recipe."""
    from worldenv_cli.recipe import load_recipe

    return load_recipe(MINI)


@pytest.fixture(scope="session")
def session_env(mini):
    from worldenv_cli.envs.vector import RealVectorEnv

    env = RealVectorEnv(mini.env.model_copy(update={"rows": 3, "workers": 2}))
    yield env
    env.close()


@pytest.fixture
def env(session_env):
    """Three rows of real Meta-World in two workers, shared by all tests, as they were made."""
    config = session_env.config
    yield session_env
    session_env.config, session_env.until_horizon, session_env.every_frame = config, False, True


@pytest.fixture(scope="session")
def demonstrations(mini, session_env):
    """Two successes of the scripted expert for each task."""
    from worldenv_cli.data.expert import demonstrate

    return demonstrate(session_env, mini.ingest, 0)[0]


@pytest.fixture(scope="session")
def trained_policy(mini, demonstrations):
    """The policy after the miniature's fine-tuning. Tests that change it take a copy: see `policy`."""
    import torch

    from worldenv_cli.policies.compact import CompactPolicy
    from worldenv_cli.policies.sft import fine_tune

    torch.manual_seed(0)
    policy = CompactPolicy(mini.policy)
    fine_tune(policy, demonstrations, mini.sft, seed=0)
    return policy.eval()


@pytest.fixture
def policy(trained_policy):
    return copy.deepcopy(trained_policy)


@pytest.fixture(scope="session")
def explored(mini, session_env, trained_policy):
    """Episodes of the fine-tuned policy, with noise, split for training, calibration and measurement; mostly failures."""
    from worldenv_cli.data.explore import explore

    config = mini.explore.model_copy(update={"episodes": 2, "held_out": 1, "noise": (0.0, 0.3)})
    return explore(session_env, trained_policy, config, calibration_share=0.5, seed=0)


@pytest.fixture(scope="session")
def simulator_config(mini):
    """The miniature's simulator with what a dataset would tell it of camera and actions."""
    from worldenv_cli.envs.metaworld import METRES_PER_STEP

    camera = mini.env.camera
    unit = METRES_PER_STEP * mini.env.action_repeat * np.diag([1.0, 1.0, 1.0, 0.0])
    found = {"intrinsics": camera.intrinsics(mini.env.resolution).tolist(), "extrinsics": camera.extrinsics().tolist()}
    return type(mini.simulator).model_validate(mini.simulator.model_dump() | found | {"action_unit": unit.tolist()})


@pytest.fixture(scope="session")
def trained_simulator(mini, simulator_config, demonstrations, explored):
    """A simulator after the miniature's few training steps."""
    import torch

    from worldenv_cli.simulator.simulator import Simulator
    from worldenv_cli.simulator.train import train_simulator

    torch.manual_seed(0)
    simulator = Simulator(simulator_config)
    train_simulator(simulator, demonstrations + explored, mini.simulate, seed=0)
    return simulator.eval()


@pytest.fixture
def simulator(trained_simulator):
    return copy.deepcopy(trained_simulator)


@pytest.fixture
def reflector(mini):
    """An untrained reflector whose scores differ visibly from frame to frame."""
    import torch

    from worldenv_cli.reflector.compact import Reflector

    torch.manual_seed(0)
    reflector = Reflector(mini.reflector).eval()
    reflector.calibration.copy_(torch.tensor([20.0, 0.0]))
    return reflector


@pytest.fixture(scope="session")
def finished(mini, tmp_path_factory):
    """`worldenv run tests/mini.yaml`, done once: its folder and what it said."""
    from worldenv_cli.stage_runner import run_stages

    folder = tmp_path_factory.mktemp("runs") / "mini"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run_stages(mini, folder)
    return SimpleNamespace(folder=folder, said=said.getvalue())


def history(episode, moment=0, camera="front"):
    """The first `moment` control steps of an episode, as the simulator wants them."""
    from worldenv_cli.post_train.starts import history_until

    return history_until(episode, camera, moment)


def observation(episodes, moment=0, camera="front"):
    """What the policy sees at one moment of each episode."""
    from worldenv_cli.policies.observation import Observation

    images = np.stack([episode.frames[camera][moment] for episode in episodes])
    states = np.stack([episode.states[moment] for episode in episodes])
    return Observation({camera: images}, states, [episode.instruction for episode in episodes])
