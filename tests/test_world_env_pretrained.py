"""The imagined environment of a run: by its folder, from the Hub, and through gymnasium's registry; without the real environment installed."""

import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from test_hub import hub  # noqa: F401 - a fixture

from worldenv_cli.artifacts import write_artifact
from worldenv_cli.data.dataset import read_dataset, write_dataset
from worldenv_cli.errors import UserError
from worldenv_cli.models import save_model
from worldenv_cli.push import push
from worldenv_cli.recipe import resolved_yaml
from worldenv_cli.world_env import WorldEnv


@pytest.fixture(scope="module")
def run(mini, trained_simulator, explored, tmp_path_factory):
    """What `from_pretrained` takes of a run's folder, its second round's models included, which tell themselves by their thresholds."""
    import torch

    from worldenv_cli.reflector.compact import Reflector

    folder = tmp_path_factory.mktemp("imagined") / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(resolved_yaml(mini))
    torch.manual_seed(0)
    reflector = Reflector(mini.reflector)
    for number, place in enumerate((folder, folder / "rounds/2"), 1):
        reflector.threshold.fill_(1 + number)
        for name, model in (("simulator", trained_simulator), ("reflector", reflector)):
            (place / name).mkdir(parents=True)
            save_model(place / name, name, model, {}, f"# A {name}")
    for name, episodes in (("exploration", explored), ("rounds/1/probe", explored[:2])):
        env = mini.env
        names = {"state_names": env.state_names, "action_names": env.action_names}
        write_dataset(folder / name, episodes, fps=env.control_hz, description=env.description(), robot_type=env.robot, **names)
        write_artifact(folder / name, "dataset", {}, None, {}, "# Episodes")
    return folder


def first_frames(episodes):
    return {episode.frames["front"][0].tobytes() for episode in episodes if episode.info["split"] != "held-out"}


def test_it_has_the_models_of_the_last_round_and_begins_where_post_training_may(run, mini, explored):
    env = WorldEnv.from_pretrained(run)
    assert env.reflector.threshold.item() == 3 and env.config == mini.world_env and env.num_envs == mini.world_env.rows
    usable = first_frames(explored)
    assert {one.frames[0].tobytes() for one in env.pool} == usable and len(env.pool) == len(usable) + len(first_frames(explored[:2]))
    assert all(one.frames.base is None and len(one.frames) == 1 and not len(one.actions) for one in env.pool)
    first = WorldEnv.from_pretrained(str(run), round=1, num_envs=2)
    assert first.reflector.threshold.item() == 2 and first.num_envs == 2 and len(first.pool) == len(usable)
    observation, _ = first.reset(seed=0)
    assert observation in first.observation_space and observation["images"]["front"][0].tobytes() in usable


def test_only_first_frames_are_decoded(run, explored):
    whole, firsts = read_dataset(run / "exploration"), read_dataset(run / "exploration", "front", 1)
    assert [one.frames["front"].tobytes() for one in firsts] == [one.frames["front"][:1].tobytes() for one in whole]
    assert [one.states.tobytes() for one in firsts] == [one.states.tobytes() for one in whole]
    with pytest.raises(UserError, match="no camera 'wrist', found front"):
        read_dataset(run / "exploration", "wrist")


def test_what_is_no_run_is_told(run, tmp_path, mini):
    for folder, options, message in (
        (tmp_path, {}, "no recipe.yaml there, expected the folder of a run"),
        (tmp_path / "nothing", {}, "no"),
        (run, {"round": 3}, "no models of round 3; there are those of 1, 2"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            WorldEnv.from_pretrained(folder, **options)
        assert "\n" not in str(caught.value)
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(mini))
    with pytest.raises(UserError, match="no simulator and reflector there; make them with `worldenv run"):
        WorldEnv.from_pretrained(tmp_path)


def test_a_run_that_was_pushed_is_played_from_the_hub(hub, run):  # noqa: F811
    push(run, "me/run")
    seen = []
    for env in (WorldEnv.from_pretrained("me/run"), WorldEnv.from_pretrained(run)):
        env.reset(seed=3)
        observation, *_, info = env.step(np.zeros(env.action_space.shape, np.float32))
        seen.append((observation["images"]["front"], info["scores"]))
    for first, again in zip(*seen):
        np.testing.assert_array_equal(first, again)


def test_gymnasium_makes_it(run):
    env = gymnasium.make_vec("worldenv/World-v0", run=str(run), num_envs=3, render_mode="rgb_array")
    assert env.num_envs == 3 and env.spec.id == "worldenv/World-v0" and env.spec.kwargs["run"] == str(run)
    env.reset(seed=0)
    assert len(env.render()) == 3 and env.metadata["render_fps"] == 20 / 4
    again = gymnasium.make_vec(env.spec)
    assert isinstance(again, WorldEnv) and again.num_envs == 3
    env.close()
    assert gymnasium.make_vec("worldenv/World-v0", run=str(run), autoreset_mode="NextStep").num_envs == 1


def test_readmes_example_runs(run):
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    code = re.search(r"```python\n(import gymnasium\nimport worldenv_cli.*?)```", text, re.S)[1]
    assert '"runs/quickstart"' in code
    seen: dict = {}
    exec(code.replace('"runs/quickstart"', repr(str(run))), seen)
    assert seen["info"]["alive"].all() and len(seen["pictures"]) == 8


WITHOUT = """
import sys
for name in ("metaworld", "mujoco", "libero", "robosuite", "OpenGL"):
    sys.modules[name] = None
"""


@pytest.mark.parametrize(
    "code",
    [
        "import gymnasium, worldenv_cli; name = 'worldenv/World-v0'; assert 'torch' not in sys.modules",
        "import worldenv_cli; assert 'gymnasium' not in sys.modules; import gymnasium; name = 'worldenv_cli.world_env:worldenv/World-v0'",
    ],
)
def test_it_needs_no_real_environment_and_importing_the_package_stays_light(run, code):
    """In whichever order things are imported."""
    played = f"env = gymnasium.make_vec(name, run={str(run)!r}, num_envs=2); env.reset(seed=0); env.step(env.action_space.sample()); print('played')"
    done = subprocess.run([sys.executable, "-c", "\n".join([WITHOUT, code, played])], capture_output=True, text=True)
    assert done.stdout.endswith("played\n"), done.stderr
