"""LIBERO's and robomimic's files as people have them: played again, cut, linked, without pictures, of two arms, with absolute actions."""

import json
import os
import re
import zlib

import h5py
import numpy as np
import pytest
from recorded import CONTROLLER, frames, libero_file, numbers, robomimic_file

from worldenv_cli.data.sources import SourceConfig, detect, open_source
from worldenv_cli.data.sources.alignment import observed_after
from worldenv_cli.data.sources.frames import colours
from worldenv_cli.data.sources.geometry import mujoco_camera
from worldenv_cli.data.sources.hdf5 import files_of
from worldenv_cli.errors import UserError

COMPOSITE = {"type": "BASIC", "body_parts": {"right": CONTROLLER | {"input_max": 1, "input_min": -1, "gripper": {"type": "GRIP"}}}}


def opened(path, **config):
    return open_source(path, SourceConfig(**config))


def episodes(source):
    return [source.read(listed, tuple(source.cameras)) for listed in source.episodes]


def attributes(path, **texts):
    """Of `data`; None removes one."""
    with h5py.File(path, "a") as file:
        for name, text in texts.items():
            if text is None:
                del file["data"].attrs[name]
            else:
                file["data"].attrs[name] = json.dumps(text) if isinstance(text, dict) else text
    return path


def env_args(path, **kwargs):
    return attributes(
        path, env_args={"env_name": "Lift", "env_kwargs": {"robots": ["Panda"], "control_freq": 20, "controller_configs": CONTROLLER} | kwargs}
    )


def refused(path, words, **config):
    with pytest.raises(UserError, match=words) as error:
        episodes(opened(path, **{"instruction": "lift"} | config))
    assert "\n" not in str(error.value) and "drop the" not in str(error.value)
    return str(error.value)


# Pictures before or after the action of their row


def played(path, after, lengths=(8, 7), **changed):
    """A LIBERO file whose states say when its observations were taken; joints lie at 1:8 of a state, as LIBERO's do."""

    def states(steps):
        return np.random.default_rng(steps).normal(size=(steps + 1, 40)).cumsum(0)

    recorded = {
        "states": lambda n: states(n)[:-1],
        "obs/joint_states": lambda n: states(n)[after : n + after, 1:8],
        "robot_states": lambda n: numbers(n, n, 9),
    }
    return libero_file(path, lengths, **recorded | changed)


@pytest.mark.parametrize("with_attributes", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_states_tell_when_pictures_were_taken(tmp_path, after, with_attributes):
    path = played(tmp_path / "open_the_drawer_demo.hdf5", after)
    if not with_attributes:
        attributes(path, problem_info=None, env_args=None)
    source = opened(path)
    assert source.control_hz == 20 and source.robot == "panda" and source.action_names[-1] == "gripper" and source.limits[0] == [-1] * 7
    for listed, episode in zip(source.episodes, episodes(source)):
        demo = listed.name.rpartition(": ")[2]
        with h5py.File(path) as file:
            raw = {name: file["data"][demo][name][:] for name in ("actions", "obs/agentview_rgb")}
        expected = raw["actions"][1:] if after else raw["actions"][:-1]
        np.testing.assert_array_equal(episode.actions, expected.astype(np.float32))
        np.testing.assert_array_equal(episode.frames["image"], raw["obs/agentview_rgb"][:, ::-1, ::-1])
        if after:
            assert episode.last_action is None
        else:
            np.testing.assert_array_equal(episode.last_action, raw["actions"][-1].astype(np.float32))
    assert any(("after" if after else "before") + " the action" in note and "states tell" in note for note in source.notes)


def test_states_with_noise_and_another_first_row_tell(tmp_path):
    """Played again, the first row's state is the recording's, and observations lag a little behind."""
    walk = np.random.default_rng(0).normal(size=(30, 60)).cumsum(0)
    joints = walk[:, 11:18] + np.random.default_rng(1).normal(size=(30, 7)) / 20
    walk[0] = 7
    assert observed_after(joints, walk) is False
    assert observed_after(joints[1:], walk[:-1]) is True
    assert observed_after(np.zeros((9, 7)), np.zeros((9, 40))) is None and observed_after(numbers(0, 9, 7), numbers(1, 9, 40)) is None
    assert observed_after(np.full((9, 7), np.nan), walk[:9]) is None


def test_what_cannot_be_told_is_assumed_aloud(tmp_path):
    own = opened(libero_file(tmp_path / "open_the_drawer_demo.hdf5"))
    assert any("after the action" in note and "assumed of 2" in note for note in own.notes)
    bare = opened(attributes(libero_file(tmp_path / "open_it_demo.hdf5"), problem_info=None, env_args=None))
    assert any("before the action" in note and "assumed of 2" in note for note in bare.notes)
    assert (bare.control_hz, bare.robot, bare.gripper, bare.limits) == (None, None, None, None)
    assert {camera["orientation"] for camera in bare.cameras.values()} == {None}
    assert {episode.outcome for episode in episodes(bare)} == {"unknown"} and "unknown" in bare.outcome


def test_rewards_of_files_that_were_played_again(tmp_path):
    path = played(tmp_path / "open_it_demo.hdf5", False, rewards=lambda n: np.arange(n) == n - 1 if n == 8 else np.zeros(n))
    attributes(path, problem_info=None, env_args=None)
    first, second = episodes(opened(path))
    assert first.success.tolist() == [False] * 7 + [True] and second.outcome == "failure"
    again = played(tmp_path / "close_it_demo.hdf5", False, rewards=lambda n: np.where(np.arange(n) == 2, np.nan, 1.0))
    refused(again, "rewards: nan in row 2")


def test_no_ops_of_files_that_were_played_again(tmp_path):
    actions = numbers(0, 8, 7)
    actions[:, 6] = -1
    actions[2:4, :6] = 0
    path = played(tmp_path / "open_it_demo.hdf5", False, lengths=(8,), actions=actions)
    (episode,) = episodes(opened(path, drop_no_ops=True))
    assert episode.info["steps"] == [0, 1, 2, 5, 6, 7]
    np.testing.assert_array_equal(episode.actions, actions[[0, 1, 4, 5, 6]].astype(np.float32))
    still = libero_file(tmp_path / "still_demo.hdf5", lengths=(6,), actions=np.tile([0, 0, 0, 0, 0, 0, -1.0], (6, 1)))
    refused(still, "demo_0: 5 steps, none of which moves anything", drop_no_ops=True)


# Families of LIBERO's files


@pytest.mark.parametrize(
    "name, bddl, instruction",
    [
        ("KITCHEN_SCENE3_open_the_drawer_demo", None, "open the drawer"),
        ("LIVING_ROOM_SCENE12_open_the_drawer_demo", None, "open the drawer"),
        ("open_the_drawer_demo", None, "open the drawer"),
        ("open_the_drawer", None, "the scene file's words"),
        ("data", "a/b/KITCHEN_SCENE3_open_the_drawer.bddl", "open the drawer"),
        ("data", None, "the scene file's words"),
    ],
)
def test_instructions_of_libero(tmp_path, name, bddl, instruction):
    path = libero_file(tmp_path / f"{name}.hdf5")
    if bddl:
        attributes(path, bddl_file_name=bddl)
    assert {listed.instruction for listed in opened(path).episodes} == {instruction}
    attributes(path, problem_info=None)
    assert name != "data" or bddl or {listed.instruction for listed in opened(path).episodes} == {""}


def test_cameras_that_are_there(tmp_path):
    more = libero_file(
        tmp_path / "more_demo.hdf5", **{"obs/front_rgb": lambda n: frames(5, n, 24), "obs/agentview_depth": lambda n: numbers(0, n, 16, 16, 1)}
    )
    source = opened(more)
    assert {name: camera["size"] for name, camera in source.cameras.items()} == {"image": [16, 16], "wrist_image": [16, 16], "front": [24, 24]}
    assert any("agentview_depth is left aside" in note for note in source.notes)
    read = source.read(source.episodes[0], ("front",))
    assert list(read.frames) == ["front"]
    one = opened(libero_file(tmp_path / "one_demo.hdf5", **{"obs/eye_in_hand_rgb": None}))
    assert list(one.cameras) == ["image"] and not one.unusable_cameras


def test_a_camera_that_some_demonstrations_lack(tmp_path):
    for write, name, camera in (
        (libero_file, "obs/eye_in_hand_rgb", "wrist_image"),
        (robomimic_file, "obs/robot0_eye_in_hand_image", "robot0_eye_in_hand"),
    ):
        path = write(tmp_path / f"{camera}_demo.hdf5", lengths=(6, 5, 4), **{name: lambda n: frames(n, n)})
        with h5py.File(path, "a") as file:
            demo = sorted(file["data"])[-1]
            del file["data"][demo][name]
        source = opened(path, instruction="lift")
        assert camera not in source.cameras and "only 2 of 3" in source.unusable_cameras[camera]
        skipped = opened(path, instruction="lift", skip_bad=True)
        assert camera in skipped.cameras and len(skipped.episodes) == 2 and demo in skipped.unusable[0]


def test_poses_under_their_other_names(tmp_path):
    path = libero_file(
        tmp_path / "a_b_demo.hdf5", **{"obs/ee_states": None, "obs/ee_pos": lambda n: numbers(1, n, 3), "obs/ee_ori": lambda n: numbers(2, n, 3)}
    )
    source = opened(path)
    assert source.state_names == ["x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right"]


def test_pictures_that_are_not_upside_down(tmp_path):
    path = attributes(libero_file(tmp_path / "a_b_demo.hdf5"), macros_image_convention="opencv")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(episodes(opened(path))[0].frames["image"], file["data/demo_0/obs/agentview_rgb"][:][:, :, ::-1])


def test_actions_beyond_libero_s_limits(tmp_path):
    """One command beyond them is the controller's to clip; numbers that all lie beyond are something else."""
    one = numbers(0, 6, 7)
    one[2, 3] = 40
    source = opened(libero_file(tmp_path / "one_demo.hdf5", lengths=(6,), actions=one))
    assert source.limits == ([-1.0] * 7, [1.0] * 7) and episodes(source)[0].actions.max() == 40
    source = opened(libero_file(tmp_path / "all_demo.hdf5", actions=lambda n: 3 + numbers(0, n, 7)))
    assert source.limits is None and source.gripper is None and source.action["unit"] is None and any("no inputs" in note for note in source.notes)


# Folders


def test_hidden_files_are_no_data_and_a_cut_one_is_named(tmp_path):
    for name in ("KITCHEN_SCENE1_open_it", "KITCHEN_SCENE2_close_it"):
        libero_file(tmp_path / f"{name}_demo.hdf5")
    (tmp_path / "._KITCHEN_SCENE1_open_it_demo.hdf5").write_bytes(b"Mac OS X" * 100)
    assert len(opened(tmp_path).episodes) == 4
    cut = tmp_path / "KITCHEN_SCENE1_open_it_demo.hdf5"
    cut.write_bytes(cut.read_bytes()[:5000])
    assert cut.name in refused(tmp_path, "not a whole HDF5 file")
    source = opened(tmp_path, skip_bad=True)
    assert {listed.instruction for listed in source.episodes} == {"close it"} and cut.name in source.unusable[0]


def test_folders_of_robomimic(tmp_path):
    place = tmp_path / "lift" / "ph"
    robomimic_file(place / "image.hdf5")
    robomimic_file(place / "low_dim.hdf5", **{"obs/agentview_image": None, "next_obs/agentview_image": None})
    for path in (place, tmp_path / "lift"):
        assert detect(path) == "robomimic"
        source = opened(path, instruction="lift")
        assert {listed.name.partition(":")[0] for listed in source.episodes} == {"image.hdf5"} and any(
            "low_dim.hdf5 is left aside" in n for n in source.notes
        )
    robomimic_file(place / "image_2.hdf5")
    assert len(opened(place, instruction="lift").episodes) == 4
    env_args(place / "image_2.hdf5", control_freq=10)
    assert {"image.hdf5", "image_2.hdf5"} <= set(re.findall(r"image[_2]*\.hdf5", refused(place, "control_freq of image_2.hdf5")))


def test_pipes_and_others_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "a_demo.hdf5")
    for format in (None, "libero", "robomimic", "rlds"):
        with pytest.raises(UserError, match="pipe|not a file|no demonstrations|no features.json"):
            open_source(tmp_path / "a_demo.hdf5", SourceConfig(), format)
    with pytest.raises(UserError, match="not a file"):
        opened(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x.hdf5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refused(tmp_path / "b", "pointer of Git LFS")
    (tmp_path / "b/x.hdf5").write_text("<!DOCTYPE html><html>404</html>")
    assert files_of(tmp_path / "b") and "web page" in refused(tmp_path / "b", "not a whole HDF5")
    (tmp_path / "b/x.hdf5").unlink()
    with h5py.File(tmp_path / "b/x.hdf5", "w") as file:
        file["observations/qpos"] = numbers(0, 5, 14)
    refused(tmp_path / "b", "ALOHA.*convert it to a LeRobotDataset")


# robomimic


def test_two_arms(tmp_path):
    second = {
        f"{group}/robot1_{name}": lambda n, size=size: numbers(7, n, size)
        for group in ("obs", "next_obs")
        for name, size in {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}.items()
    }
    path = env_args(robomimic_file(tmp_path / "image.hdf5", actions=lambda n: numbers(0, n, 14), **second), robots=["Panda", "Sawyer"])
    source = opened(path, instruction="lift")
    assert source.state_names[0] == "robot0_eef_pos_0" and source.state_names[-1] == "robot1_gripper_qpos_1" and len(source.state_names) == 18
    assert source.action_names[0] == "robot0_dx" and source.action_names[13] == "robot1_gripper" and source.robot == "panda+sawyer"
    assert len(source.action["unit"]) == 14 and source.gripper is None
    lost = env_args(robomimic_file(tmp_path / "lost.hdf5", actions=lambda n: numbers(0, n, 14)), robots=["Panda", "Panda"])
    refused(lost, "the hand of 1 of 2 robots.*--state")


def test_absolute_actions(tmp_path):
    """Said so by the controller, or told by their size although the attributes are those of the file that they were made from."""

    def poses(n):
        return numbers(0, n, 7) + [0, 0, 1, 3, 0, 0, 0]

    told = opened(
        env_args(robomimic_file(tmp_path / "a.hdf5", actions=poses), controller_configs=CONTROLLER | {"control_delta": False}), instruction="lift"
    )
    assert told.action_names[:4] == ["x", "y", "z", "rx"] and told.limits is None and told.action["unit"] is None and told.gripper["closes"] == 1
    copied = opened(
        env_args(robomimic_file(tmp_path / "b.hdf5", actions=poses), controller_configs=CONTROLLER | {"input_max": 1, "input_min": -1}),
        instruction="lift",
    )
    assert copied.limits is None and copied.gripper is None and any("most actions lie beyond" in note for note in copied.notes)
    for source in (told, copied):
        np.testing.assert_array_equal(episodes(source)[0].actions, poses(6).astype(np.float32))
    parts = {
        "action_dict/abs_pos": lambda n: numbers(3, n, 3),
        "action_dict/abs_rot_6d": lambda n: numbers(4, n, 6),
        "action_dict/gripper": lambda n: numbers(5, n, 1),
    }
    path = robomimic_file(tmp_path / "c.hdf5", **parts)
    source = opened(path, instruction="lift", action="action_dict/abs_pos,action_dict/abs_rot_6d,action_dict/gripper")
    assert episodes(source)[0].actions.shape == (6, 10) and source.limits is None
    assert opened(path, instruction="lift", action="action_dict/abs_pos").action_names == ["abs_pos_0", "abs_pos_1", "abs_pos_2"]


@pytest.mark.parametrize("controller", [CONTROLLER | {"input_max": 1, "input_min": -1}, COMPOSITE, {"body_parts": {"arms": COMPOSITE["body_parts"]}}])
def test_controllers_of_robosuite(tmp_path, controller):
    source = opened(env_args(robomimic_file(tmp_path / "a.hdf5"), controller_configs=controller), instruction="lift")
    assert source.limits == ([-1.0] * 7, [1.0] * 7) and source.gripper == {"dimension": 6, "closes": 1}
    assert source.action["unit"] == [0.05] * 3 + [0.5] * 3 + [1.0] and source.action_names[0] == "dx"


def test_other_robots_are_unknown(tmp_path):
    joints = opened(
        env_args(robomimic_file(tmp_path / "a.hdf5"), controller_configs={"type": "JOINT_VELOCITY", "input_max": 1, "input_min": -1}),
        instruction="lift",
    )
    assert joints.action_names[0] == "action_0" and joints.limits is None and joints.gripper is None
    bare = opened(attributes(robomimic_file(tmp_path / "b.hdf5"), env_args=None), instruction="lift")
    assert (bare.control_hz, bare.robot, bare.gripper, bare.limits) == (None, None, None, None) and bare.cameras["agentview"]["orientation"] is None


def test_rewards_of_robomimic(tmp_path):
    def outcomes(path, **config):
        source = opened(path, instruction="lift", **config)
        return [episode.outcome for episode in episodes(source)], source.outcome

    last = robomimic_file(
        tmp_path / "last.hdf5",
        **{f"next_obs/{name}": None for name in ("agentview_image", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")},
    )
    (first, second) = episodes(opened(last, instruction="lift"))
    assert (
        first.success.tolist() == [False] * 5 + [True] and len(first.actions) == 5 and first.last_action is not None and second.outcome == "success"
    )
    assert outcomes(robomimic_file(tmp_path / "none.hdf5", rewards=None))[0] == ["unknown"] * 2
    found, told = outcomes(robomimic_file(tmp_path / "shaped.hdf5", rewards=lambda n: np.linspace(0.1, 0.9, n)))
    assert found == ["unknown"] * 2 and "several sizes" in told
    assert outcomes(robomimic_file(tmp_path / "zeros.hdf5", rewards=np.zeros))[0] == ["failure"] * 2
    assert outcomes(attributes(robomimic_file(tmp_path / "real.hdf5", rewards=np.zeros), env_args=None))[0] == ["unknown"] * 2
    flagged = robomimic_file(tmp_path / "flagged.hdf5", rewards=None, done=lambda n: np.arange(n) == 2 if n == 6 else np.zeros(n))
    assert outcomes(flagged, success="done")[0] == ["success", "failure"]
    refused(flagged, "no nothing", success="nothing")
    refused(robomimic_file(tmp_path / "nan.hdf5", rewards=lambda n: np.where(np.arange(n) == 1, np.nan, 1.0)), "demo_1, rewards: nan in row 1")
    skipped = opened(robomimic_file(tmp_path / "ragged.hdf5", rewards=lambda n: np.zeros(6)), instruction="lift", skip_bad=True)
    assert len(skipped.episodes) == 1 and "demo_2" in skipped.unusable[0]


def test_no_pictures(tmp_path):
    low = robomimic_file(tmp_path / "low_dim.hdf5", **{"obs/agentview_image": None, "next_obs/agentview_image": None})
    refused(low, "low_dim.hdf5: no pictures.*dataset_states_to_obs.py.*--camera_names")
    raw = robomimic_file(tmp_path / "raw.hdf5")
    with h5py.File(raw, "a") as file:
        for demo in file["data"].values():
            del demo["obs"], demo["next_obs"]
    refused(raw, "raw.hdf5: no pictures.*dataset_states_to_obs.py")


def test_instructions_of_robocasa(tmp_path):
    path = robomimic_file(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_1"].attrs["ep_meta"] = json.dumps({"lang": "close the drawer"})
    assert [listed.instruction for listed in opened(path).episodes] == ["close the drawer", ""]


# Pictures of other numbers


def test_pictures_are_converted_where_nothing_is_lost():
    shown = frames(0, 3, 8)
    same = {
        "float32": shown.astype(np.float32) / 255,
        "float16": (shown / 255).astype(np.float16),
        "float of 255": shown.astype(float),
        "int64": shown.astype(np.int64),
        "16 bits": shown.astype(np.uint16) * 257,
        "channels first": shown.transpose(0, 3, 1, 2),
        "opaque": np.concatenate([shown, np.full((3, 8, 8, 1), 255, np.uint8)], 3),
        "uint8": shown,
    }
    for what, values in same.items():
        found = colours(values, "here")
        assert found.dtype == np.uint8, what
        np.testing.assert_array_equal(found, shown, what)
    grey = colours(shown[..., 0], "here")
    np.testing.assert_array_equal(grey, np.repeat(shown[..., :1], 3, 3))
    wrong = (
        shown / 255 * 0.9,
        shown.astype(np.uint16) * 3,
        shown - 128.0,
        np.concatenate([shown, shown[..., :1]], 3),
        shown[..., :2],
        np.full((1, 4, 4, 3), np.nan),
    )
    for values in wrong:
        with pytest.raises(UserError, match="here: ") as error:
            colours(values, "here")
        assert "\n" not in str(error.value)


# Links, sizes, and damage


def link(path, name, target):
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            if name in demo:
                del demo[name]
            demo[name] = target
    return path


@pytest.mark.parametrize("name", ["actions", "obs/agentview_rgb", "obs/ee_states", "obs", "rewards", "obs/joint_states"])
@pytest.mark.parametrize("way", ["external", "soft through external", "circle", "dangling"])
def test_links_stay_inside_the_file(tmp_path, name, way):
    secret = libero_file(tmp_path / "secret.h5", lengths=(6,), states=lambda n: numbers(0, n, 40))
    with h5py.File(secret, "a") as file:
        file["x"] = h5py.SoftLink(f"/data/demo_0/{name}")
    path = libero_file(tmp_path / "a/b_c_demo.hdf5", lengths=(6,), states=lambda n: numbers(0, n, 40))
    with h5py.File(path, "a") as file:
        file["out"] = h5py.ExternalLink("../secret.h5", "/")
        file["circle"] = h5py.SoftLink("/circle")
    targets = {
        "external": h5py.ExternalLink("../secret.h5", f"/data/demo_0/{name}"),
        "soft through external": h5py.SoftLink(f"/out/data/demo_0/{name}"),
        "circle": h5py.SoftLink("/circle"),
        "dangling": h5py.SoftLink("/nothing"),
    }
    refused(link(path, name, targets[way]), "do not trust this file|no nothing")


def test_links_within_the_file_are_followed(tmp_path):
    path = libero_file(tmp_path / "b_c_demo.hdf5", lengths=(6, 6))
    before = episodes(opened(path))[0]
    with h5py.File(path, "a") as file:
        file["kept"] = file["data/demo_0/actions"][:]
    link(path, "actions", h5py.SoftLink("/kept"))
    np.testing.assert_array_equal(episodes(opened(path))[1].actions, before.actions)


def test_numbers_that_lie_elsewhere(tmp_path):
    (tmp_path / "raw").write_bytes(numbers(0, 6, 7).tobytes())
    path = libero_file(tmp_path / "b_c_demo.hdf5", lengths=(6,), actions=None)
    with h5py.File(path, "a") as file:
        file["data/demo_0"].create_dataset("actions", (6, 7), "f8", external=[(str(tmp_path / "raw"), 0, 336)])
    refused(path, "actions: its numbers lie elsewhere")
    path = libero_file(tmp_path / "d_e_demo.hdf5", lengths=(6,), actions=None)
    layout = h5py.VirtualLayout((6, 7), "f8")
    layout[:] = h5py.VirtualSource(tmp_path / "b_c_demo.hdf5", "data/demo_0/obs/ee_states", (6, 7))
    with h5py.File(path, "a") as file:
        file["data/demo_0"].create_virtual_dataset("actions", layout)
    refused(path, "actions: its numbers lie elsewhere")


@pytest.mark.parametrize("name", ["actions", "obs/agentview_rgb", "obs/ee_states"])
def test_arrays_that_were_never_written(tmp_path, name):
    shape = (2**40, 16, 16, 3) if "rgb" in name else (2**40, 7)
    for number, how in enumerate(({"chunks": True}, {"chunks": True, "compression": "gzip"})):
        path = libero_file(tmp_path / f"{number}_{number}_demo.hdf5", lengths=(6,), **{name: None})
        with h5py.File(path, "a") as file:
            file["data/demo_0"].create_dataset(name, shape, "u1" if "rgb" in name else "f8", **how)
        refused(path, "never written")
    path = libero_file(tmp_path / "half_written_demo.hdf5", lengths=(6,), **{name: None})
    with h5py.File(path, "a") as file:
        kept = file["data/demo_0"].create_dataset(name, (6, *shape[1:]), "u1" if "rgb" in name else "f8", chunks=(1, *shape[1:]))
        kept[:3] = 0
    refused(path, "a part was never written")


def test_a_few_bytes_are_not_unpacked_to_gigabytes(tmp_path):
    path = libero_file(tmp_path / "b_c_demo.hdf5", lengths=(6,), **{"obs/agentview_rgb": None})
    with h5py.File(path, "a") as file:
        array = file["data/demo_0/obs"].create_dataset("agentview_rgb", (6, 8192, 8192, 3), "u1", chunks=(1, 1024, 8192, 3), compression="gzip")
        for row in range(6):
            for part in range(8):
                array.id.write_direct_chunk((row, 1024 * part, 0, 0), PACKED)
    refused(path, "would unpack")


PACKED = zlib.compress(bytes(1024 * 8192 * 3), 9)


def test_a_chunk_that_unpacks_to_more_than_its_size(tmp_path):
    path = libero_file(tmp_path / "b_c_demo.hdf5", lengths=(6,), **{"obs/agentview_rgb": None})
    bomb = zlib.compress(np.random.default_rng(0).bytes(1_100_000), 0)
    with h5py.File(path, "a") as file:
        array = file["data/demo_0/obs"].create_dataset("agentview_rgb", (6, 16, 16, 3), "u1", chunks=(6, 16, 16, 3), compression="gzip")
        array.id.write_direct_chunk((0, 0, 0, 0), bomb)
    refused(path, "a chunk unpacks to more than")


STRUCTURES = {
    "demo is an array": lambda f: (f["data"].__delitem__("demo_0"), f["data"].create_dataset("demo_0", data=numbers(0, 3, 3))),
    "obs is an array": lambda f: (f["data/demo_0"].__delitem__("obs"), f["data/demo_0"].create_dataset("obs", data=numbers(0, 3, 3))),
    "actions is a group": lambda f: (f["data/demo_0"].__delitem__("actions"), f["data/demo_0"].create_group("actions")),
    "a named type": lambda f: (f["data/demo_0"].__delitem__("actions"), f["data/demo_0"].__setitem__("actions", np.dtype("f8"))),
    "references": lambda f: replaced(f, "actions", np.array([f.ref] * 6, dtype=h5py.ref_dtype)),
    "regions": lambda f: replaced(f, "actions", np.array([f["data/demo_0/obs/ee_states"].regionref[:2]] * 6, dtype=h5py.regionref_dtype)),
    "compound": lambda f: replaced(f, "actions", np.zeros(6, dtype=[("a", "f8"), ("b", "i4")])),
    "an empty array": lambda f: replaced(f, "actions", h5py.Empty("f8")),
    "words": lambda f: replaced(f, "actions", np.array(["up"] * 6, dtype=h5py.string_dtype())),
    "complex": lambda f: replaced(f, "actions", np.zeros((6, 7), complex)),
    "ragged": lambda f: ragged(f),
    "env_args no UTF-8": lambda f: f["data"].attrs.__setitem__("env_args", np.bytes_(b"\xff\xfe{}")),
    "env_args a number": lambda f: f["data"].attrs.__setitem__("env_args", 3),
    "env_args many": lambda f: f["data"].attrs.__setitem__("env_args", np.array([b"{}", b"{}"])),
    "env_args empty": lambda f: f["data"].attrs.__setitem__("env_args", h5py.Empty("S1")),
    "env_args a reference": lambda f: f["data"].attrs.__setitem__("env_args", f.ref),
    "env_args nested": lambda f: f["data"].attrs.__setitem__("env_args", "[" * 20_000),
}


def replaced(file, name, values):
    del file["data/demo_0"][name]
    file["data/demo_0"][name] = values


def ragged(file):
    del file["data/demo_0/actions"]
    array = file["data/demo_0"].create_dataset("actions", (6,), dtype=h5py.vlen_dtype(np.float64))
    for row in range(6):
        array[row] = np.zeros(row + 1)


@pytest.mark.parametrize("write", [libero_file, robomimic_file])
@pytest.mark.parametrize("way", STRUCTURES)
def test_structures_that_are_none(tmp_path, write, way):
    path = write(tmp_path / "b_c_demo.hdf5", lengths=(6,))
    with h5py.File(path, "a") as file:
        if write is robomimic_file:
            file.move("data/demo_1", "data/demo_0")
            file["data/demo_0/obs/ee_states"] = numbers(0, 6, 6)
            del file["mask"]
        STRUCTURES[way](file)
    assert str(path) in refused(path, "b_c_demo")


@pytest.mark.parametrize("write", [libero_file, robomimic_file])
def test_flipped_bytes_are_told_or_of_no_consequence(tmp_path, write):
    """Whatever h5py makes of them: the library's exceptions never come through."""
    path = write(tmp_path / "b_c_demo.hdf5", lengths=(4,))
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, min(len(whole), 30_000), 60):
        data = bytearray(whole)
        data[place : place + 4] = random.integers(0, 256, 4, dtype=np.uint8).tobytes()
        path.write_bytes(data)
        try:
            episodes(opened(path, instruction="lift"))
        except UserError as error:
            assert "\n" not in str(error)
            str(error).encode()


def test_names_that_are_no_text(tmp_path):
    path = robomimic_file(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_1/obs"].create_dataset(b"\xff\xfe_image", data=frames(0, 5))
        file["data"].create_group("demo_²")
        file["data"].create_group("demo_" + "9" * 5000)
        file["data"].create_group("notes")
    refused(path, r"\\xff|\\udcff").encode()


@pytest.mark.parametrize(
    "known",
    [
        {"intrinsics": [[1, 2], [3, 4]]},
        3,
        {"intrinsics": "x", "extrinsics": []},
        {"intrinsics": np.eye(3).tolist(), "extrinsics": np.zeros((4, 4)).tolist()},
    ],
)
def test_cameras_whose_numbers_are_none(tmp_path, known):
    path = robomimic_file(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_1"].attrs["camera_info"] = json.dumps({"agentview": known})
    refused(path, "demo_1, camera_info, agentview")


@pytest.mark.parametrize(
    "camera",
    [
        'pos="a b c" quat="1 0 0 0"',
        'pos="1 2" quat="1 0 0 0"',
        'pos="0 0 1" quat="0 0 0 0"',
        'pos="0 0 1" quat="1 0 0 0" fovy="x"',
        'pos="0 0 1" quat="1 0 0 0" fovy="180"',
        'pos="0 0 nan" quat="1 0 0 0"',
    ],
)
def test_cameras_of_a_model_whose_numbers_are_none(camera):
    with pytest.raises(UserError, match="demo_0, camera top"):
        mujoco_camera(f'<mujoco><worldbody><camera name="top" {camera}/></worldbody></mujoco>', "top", (8, 8), "demo_0", mirrored=False)


def test_masks(tmp_path):
    path = robomimic_file(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["mask/words"] = np.array(["demo_2"], dtype=h5py.string_dtype())
        file["mask/lost"] = np.array([b"demo_9"])
        file["mask/number"] = np.arange(3)
        file["mask/references"] = np.array([file.ref], dtype=h5py.ref_dtype)
    assert [listed.name for listed in opened(path, instruction="lift", filter_key="words").episodes] == ["a.hdf5: demo_2"]
    for key, words in {"lost": "names 'demo_9'", "number": "expected a list of names", "references": "names", "none": "no filter key"}.items():
        refused(path, words, filter_key=key)
