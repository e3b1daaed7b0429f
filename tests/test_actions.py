"""Actions: one scale for all sources, always to be undone, and units and grippers compared where a dataset meets an environment."""

import json

import numpy as np
import pytest
from random_dataset import write
from recorded import lerobot_folder, numbers
from typer.testing import CliRunner

from worldenv_cli.cli import app
from worldenv_cli.data.actions import ActionScale
from worldenv_cli.data.dataset import Episode, read_dataset, read_description
from worldenv_cli.data.fitting import fitting_episodes
from worldenv_cli.data.survey import Measured, common_scale
from worldenv_cli.envs.libero import LiberoConfig
from worldenv_cli.errors import UserError


def ingested(out, *arguments):
    result = CliRunner().invoke(app, ["ingest", *map(str, arguments), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return read_dataset(out), read_description(out)["action"], result.output


def recorded_by(episode, action):
    return np.array(action.get("offset", 0.0)) + np.array(action["unit"] if "offset" in action else 1.0) * episode.actions


def degrees(reach):
    return lambda n: (reach * numbers(n, n, 2)).astype(np.float32).tolist()


def test_a_scale_and_its_inverse():
    rng = np.random.default_rng(0)
    low, high = -rng.uniform(1, 200, 5), rng.uniform(1, 200, 5)
    scale, values = ActionScale.between(low, high), rng.uniform(low, high, (100, 5))
    assert np.abs(scale.to_unit(values)).max() <= 1 + 1e-12
    np.testing.assert_allclose(scale.to_recorded(scale.to_unit(values)), values, rtol=1e-13, atol=1e-13)
    again = ActionScale.described(json.loads(json.dumps(scale.description())), 5, "set")
    np.testing.assert_array_equal(again.to_recorded(values), scale.to_recorded(values))
    assert ActionScale.described({"unit": [0.05] * 5}, 5, "set").is_identity
    for wrong in ({"offset": [0.0] * 5}, {"offset": [0.0] * 5, "unit": [0.0] * 5}, {"offset": [0.0] * 4, "unit": [1.0] * 4}):
        with pytest.raises(UserError, match="action: "):
            ActionScale.described(wrong, 5, "set")


def test_two_recordings_of_one_robot_share_one_scale(tmp_path):
    days = [lerobot_folder(tmp_path / f"day{day}", action=degrees(reach)) for day, reach in enumerate((60, 65))]
    episodes, action, said = ingested(tmp_path / "out", *days)
    for episode, reach in zip(episodes, (60, 60, 65, 65), strict=True):
        steps = len(episode.actions) + 1
        np.testing.assert_allclose(recorded_by(episode, action), reach * numbers(steps, steps, 2)[:-1], atol=1e-4)
    assert "limits unknown: scaled to [-1, 1] by these extremes of all sources" in said


def test_scales_never_stack(tmp_path):
    first, action, _ = ingested(tmp_path / "a", lerobot_folder(tmp_path / "set", action=degrees(60)))
    again, same, _ = ingested(tmp_path / "b", tmp_path / "a")
    for key in ("offset", "unit", "low", "high"):
        assert same[key] == action[key]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.last_action, other.last_action)
    both, wider, _ = ingested(tmp_path / "c", tmp_path / "a", lerobot_folder(tmp_path / "far", action=degrees(90)))
    assert wider["unit"] != action["unit"]
    np.testing.assert_allclose(recorded_by(both[0], wider), recorded_by(first[0], action), atol=1e-4)


def test_within_one_nothing_is_scaled_and_an_outlier_is_told(tmp_path):
    _, action, _ = ingested(tmp_path / "a", lerobot_folder(tmp_path / "set"))
    assert "offset" not in action and action["clipped"] == 0

    def pushed(n):
        values = numbers(n, n, 2)
        values[3, 0] = 8 if n == 40 else 0
        return values.astype(np.float32).tolist()

    _, action, said = ingested(tmp_path / "b", lerobot_folder(tmp_path / "pushed", lengths=(40, 41), action=pushed))
    assert action["high"][0] == 8 and "action m0:" in said and "largest 8: it stretches the range" in said and "action m1" not in said


@pytest.mark.parametrize("wrong", [3, {"offset": "x"}, {"offset": [1.0], "unit": [1.0]}, {"low": [0, 0], "high": ["a", "b"]}, {"gripper": "up"}])
def test_a_description_that_was_edited_is_told(tmp_path, wrong):
    ingested(tmp_path / "set", lerobot_folder(tmp_path / "source"))
    path = tmp_path / "set/meta/worldenv.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"action": wrong}))
    result = CliRunner().invoke(app, ["ingest", str(tmp_path / "set"), "--out", str(tmp_path / "x")])
    assert result.exit_code == 2 and "worldenv.json" in result.stderr and result.stderr.count("\n") == 1


def opened(path, limits):
    from worldenv_cli.data.sources import SourceConfig, open_source

    source = open_source(path, SourceConfig())
    source.limits = limits
    return source


def test_limits_that_all_know_are_the_scale_and_what_lies_beyond_is_clipped_and_counted(tmp_path):
    from worldenv_cli.data.ingest import ingest_sources
    from worldenv_cli.data.selection import Selection

    source = opened(lerobot_folder(tmp_path / "set", action=degrees(4)), ([-2.0, -3.0], [2.0, 3.0]))
    ingest_sources([source], tmp_path / "out", Selection())
    action, episodes = read_description(tmp_path / "out")["action"], read_dataset(tmp_path / "out")
    raw = np.concatenate([4 * numbers(n, n, 2) for n in (6, 4)]).astype(np.float32)
    assert action["unit"] == [2.0, 3.0] and action["clipped"] == int((np.abs(raw) > [2, 3]).sum()) > 0
    np.testing.assert_allclose(recorded_by(episodes[0], action), np.clip(4 * numbers(6, 6, 2)[:-1], [-2, -3], [2, 3]), atol=1e-5)
    other = opened(lerobot_folder(tmp_path / "other"), None)
    one = Measured("success", np.array([-5.0, 0.0]), np.array([1.0, 1.0]), np.zeros((1, 2), np.float32), 0, True)
    assert common_scale([source, other], [one])[1]["low"] == [-5.0, 0.0]  # not by limits that one of them does not know


@pytest.mark.parametrize(
    "low, absolute, gripper, stored, told",
    [
        (-1.0, False, None, [0.0, 0.0], "all zeros (hold still) and was never carried out"),
        (-2.0, False, {"dimension": 1, "closes": 1}, [0.0, "last"], "but for the gripper's, which repeats its last command"),
        (0.5, False, None, ["last", "last"], "repeats the last command"),  # zero lies outside what can be commanded
        (-1.0, True, None, ["last", "last"], "repeats the last command"),
    ],
)
def test_a_closing_row_that_was_not_recorded_holds_still(tmp_path, low, absolute, gripper, stored, told):
    """Zero where commands are steps, the last one where they are places to go to; read again, a dataset says the same of it."""
    from worldenv_cli.data.ingest import ingest_sources
    from worldenv_cli.data.selection import Selection

    path = lerobot_folder(tmp_path / "set", action=lambda n: (0.75 + 0.2 * numbers(n, n, 2)).astype(np.float32).tolist())
    source = opened(path, ([low] * 2, [1.0] * 2))
    recorded = source.read

    def without_last(listed, cameras):
        episode = recorded(listed, cameras)
        episode.last_action = None
        return episode

    source.read, source.gripper = without_last, gripper
    source.action |= {"absolute": True} if absolute else {}
    ingest_sources([source], tmp_path / "out", Selection())
    action, description = read_description(tmp_path / "out")["action"], read_description(tmp_path / "out")
    for episode in read_dataset(tmp_path / "out"):
        scale = ActionScale.described(action, 2, "out")
        expected = [scale.to_recorded(episode.actions[-1])[i] if value == "last" else value for i, value in enumerate(stored)]
        np.testing.assert_allclose(scale.to_recorded(episode.last_action), expected, atol=1e-6)
    assert told in description["closing_row"]
    ingested(tmp_path / "again", tmp_path / "out")
    assert read_description(tmp_path / "again")["closing_row"] == description["closing_row"]
    ingested(tmp_path / "both", tmp_path / "out", lerobot_folder(tmp_path / "other"))
    both = read_description(tmp_path / "both")["closing_row"]
    assert told in both and "is the one that was recorded with that observation" in both


def test_the_closing_row_holds_the_sources_own_last_action(tmp_path):
    episodes, action, _ = ingested(tmp_path / "out", lerobot_folder(tmp_path / "set", action=degrees(60)))
    for episode, steps in zip(episodes, (6, 4), strict=True):
        last = np.array(action["offset"]) + np.array(action["unit"]) * episode.last_action
        np.testing.assert_allclose(last, 60 * numbers(steps, steps, 2)[-1], atol=1e-4)
    assert "the one that was recorded with that observation" in read_description(tmp_path / "out")["closing_row"]


# Where a dataset meets an environment

TASK = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"


def libero():
    return LiberoConfig(suite="libero_object", tasks=[TASK], resolution=16, cameras=("image",))


def demonstration(seed, steps=60, opens=-1, **changed):
    """Seven commands; the fingers follow the last one, which opens them where it has the sign of `opens`."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-0.5, 0.5, (steps, 7)).astype(np.float32)
    actions[:, 6] = np.where((np.arange(steps) // 15) % 2 == 0, opens, -opens)
    states = rng.normal(size=(steps + 1, 8)).astype(np.float32)
    apart = np.r_[0.04, np.where(actions[:, 6] == opens, 0.04, 0.0)]
    for t in range(1, len(apart)):  # the fingers need a few steps
        apart[t] = apart[t - 1] + np.clip(apart[t] - apart[t - 1], -0.015, 0.015)
    states[:, 6], states[:, 7] = apart, -apart
    if changed.pop("fingers", True) is False:
        states[:, 6:] = rng.normal(size=(steps + 1, 2))
    frames = {"image": np.zeros((steps + 1, 16, 16, 3), np.uint8)}
    return Episode(frames, states, actions, np.arange(steps + 1) == steps, TASK.replace("_", " "), {"from": f"demo {seed}"})


def dataset(folder, episodes, **action):
    names = [f"action_{i}" for i in range(7)]
    camera = {"orientation": None, "size": [16, 16]}
    description = {"control_hz": 20, "action": {"names": names, **action}, "state": {"names": ["s"] * 8}, "cameras": {"image": camera}}
    return write(folder, episodes, sizes=(8, 7), description=description)


def test_rare_commands_beyond_the_environments_range_are_clipped_as_it_does(tmp_path):
    episodes = [demonstration(seed) for seed in range(2)]
    recorded = [episode.actions.copy() for episode in episodes]
    recorded[0][3, 0] = 2.5
    offset, unit = np.zeros(7), np.r_[2.5, np.ones(6)]
    for episode, actions in zip(episodes, recorded, strict=True):
        episode.actions = (actions / unit).astype(np.float32)
    folder = dataset(tmp_path / "set", episodes, offset=offset.tolist(), unit=unit.tolist())
    fitted, _, lines = fitting_episodes(libero(), "set", folder, None)
    for episode, actions in zip(fitted, recorded, strict=True):
        np.testing.assert_allclose(episode.actions, np.clip(actions, -1, 1), atol=1e-6)
    assert any("1 of 840 numbers beyond [-1, 1] are clipped" in line for line in lines)
    assert any("orientation not recorded" in line for line in lines)


def test_commands_in_other_units_are_refused(tmp_path):
    stored = {"offset": [0.0] * 7, "unit": [60.0] * 7}
    with pytest.raises(UserError, match="numbers of the actions lie beyond .* other units"):
        fitting_episodes(libero(), "set", dataset(tmp_path / "a", [demonstration(0)], **stored), None)
    with pytest.raises(UserError, match="an action of 1 is"):
        fitting_episodes(libero(), "set", dataset(tmp_path / "b", [demonstration(0)], unit=[0.1] * 6 + [1.0]), None)
    with pytest.raises(UserError, match="absolute targets"):
        fitting_episodes(libero(), "set", dataset(tmp_path / "c", [demonstration(0)], absolute=True), None)
    assert fitting_episodes(libero(), "set", dataset(tmp_path / "d", [demonstration(0)], unit=[0.05] * 3 + [0.5] * 3 + [1.0]), None)


@pytest.mark.parametrize("opens, said", [(-1, None), (1, "as its fingers move")])
def test_the_fingers_tell_which_way_the_gripper_goes(tmp_path, opens, said):
    folder = dataset(tmp_path / "set", [demonstration(seed, opens=opens) for seed in range(2)])
    fitted, _, lines = fitting_episodes(libero(), "set", folder, None)
    for seed, episode in enumerate(fitted):
        np.testing.assert_array_equal(episode.actions, demonstration(seed).actions)  # -1 opens, as LIBERO's
    assert any(said in line for line in lines) if said else not any("gripper" in line for line in lines)


def test_a_gripper_is_turned_round_only_where_that_is_known(tmp_path):
    dark = [demonstration(seed, opens=1, fingers=False) for seed in range(2)]
    with pytest.raises(UserError, match="action gripper: whether 1 opens or closes .* say it to worldenv ingest: --gripper"):
        fitting_episodes(libero(), "set", dataset(tmp_path / "a", dark), None)
    told = dataset(tmp_path / "b", dark, gripper={"dimension": 6, "closes": -1})
    np.testing.assert_array_equal(fitting_episodes(libero(), "set", told, None)[0][0].actions[:, 6], -dark[0].actions[:, 6])
    with pytest.raises(UserError, match="--gripper"):
        fitting_episodes(libero(), "set", dataset(tmp_path / "c", dark, gripper={"dimension": 6, "open": 0.04, "closed": 0.0}), None)


@pytest.mark.parametrize("gripper", [{"dimension": 6, "open": 1.0, "closed": 0.0}, {"dimension": 6, "closes": -1}])
def test_a_gripper_of_zero_and_one_becomes_minus_one_and_one(tmp_path, gripper):
    """As Open X-Embodiment has it, 1 open and 0 closed: 0 would hold still where -1 opens and 1 closes."""
    binary = [demonstration(seed, opens=1, fingers=False) for seed in range(2)]
    for episode in binary:
        episode.actions[:, 6] = np.arange(len(episode.actions)) % 2
    fitted, _, lines = fitting_episodes(libero(), "set", dataset(tmp_path / "a", binary, gripper=gripper), None)
    np.testing.assert_array_equal(fitted[0].actions[:, 6], np.where(np.arange(len(fitted[0].actions)) % 2, -1, 1))
    assert any("becomes -1 or 1" in line for line in lines) and any("turned round" in line for line in lines)


def test_demonstrations_without_outcomes_can_be_said_to_succeed(tmp_path):
    episodes = [demonstration(seed) for seed in range(2)]
    for episode in episodes:
        episode.success[:], episode.info["outcome"] = False, "unknown"
    folder = dataset(tmp_path / "set", episodes)
    fitted, _, lines = fitting_episodes(libero(), "set", folder, None)
    assert [e.outcome for e in fitted] == ["unknown"] * 2 and any("never the reflector" in line for line in lines)
    assert [e.outcome for e in fitting_episodes(libero(), "set", folder, "success")[0]] == ["success"] * 2
