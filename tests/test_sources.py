"""Recorded data of other projects: what their own code reads back is what we read, and what is broken is told in one line."""

import hashlib
import json

import numpy as np
import pytest
from recorded import FIXTURES, frames, lerobot_folder, libero_file, numbers, rlds_folder, robomimic_file

from worldenv_cli.data.sources import SourceConfig, detect, open_source
from worldenv_cli.data.sources.geometry import mujoco_camera
from worldenv_cli.data.sources.tfrecord import crc32c
from worldenv_cli.errors import UserError

needs_fixtures = pytest.mark.skipif(not FIXTURES.exists(), reason=f"{FIXTURES} is not here: files written by the formats' own projects")


def opened(path, **config):
    return open_source(path, SourceConfig(**config))


def facts(name):
    return json.loads((FIXTURES / name / "facts.json").read_text())


def short_hash(values):
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


# What the original projects' own code wrote


@needs_fixtures
@pytest.mark.parametrize("version", ["lerobot_v30", "lerobot_v21"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_lerobot_matches_lerobot(version, kind):
    source = opened(FIXTURES / version / kind)
    expected = np.load(FIXTURES / version / f"{kind}_expected.npz")
    found = facts(version)[kind]
    assert source.format == ("lerobot v3.0" if version.endswith("30") else "lerobot v2.1")
    assert source.control_hz == found["fps"] and [listed.steps for listed in source.episodes] == found["lengths"]
    assert [listed.instruction for listed in source.episodes] == found["tasks"]
    first = 0
    for listed in source.episodes:
        episode = source.read(listed, tuple(source.cameras))
        rows = slice(first, first + listed.steps)
        np.testing.assert_array_equal(episode.states, expected["all/observation.state"][rows])
        np.testing.assert_array_equal(episode.actions, expected["all/action"][rows][:-1])
        np.testing.assert_array_equal(episode.last_action, expected["all/action"][rows][-1])
        for camera in source.cameras:
            for i in expected["indices"]:
                if first <= i < first + listed.steps:
                    wanted = expected[f"{i}/observation.images.{camera}"].transpose(1, 2, 0).astype(int)
                    worst = np.abs(episode.frames[camera][i - first] - wanted).max()
                    assert worst == 0 if kind == "image" else worst <= 3
        first += listed.steps


@needs_fixtures
def test_libero_is_shifted_by_one_and_turned():
    source, found = opened(FIXTURES / "libero_hdf5"), facts("libero_hdf5")
    import h5py

    with h5py.File(next((FIXTURES / "libero_hdf5").glob("*.hdf5"))) as file:
        for listed in source.episodes:
            demo = listed.name.rpartition(": ")[2]
            raw, known, episode = file["data"][demo], found["demos"][demo], source.read(listed, tuple(source.cameras))
            assert short_hash(raw["obs/agentview_rgb"][:]) == known["sha256"]["obs/agentview_rgb"]
            np.testing.assert_array_equal(episode.frames["image"], raw["obs/agentview_rgb"][:][:, ::-1, ::-1])
            np.testing.assert_allclose(episode.actions[-1], known["last_action"], atol=1e-6)
            np.testing.assert_allclose(episode.states[:, 6:], raw["obs/gripper_states"][:], atol=1e-6)
            np.testing.assert_allclose(episode.states[0, :3], known["first_ee_pos"], atol=1e-6)
            assert len(episode.actions) == known["length"] - 1 == len(episode.states) - 1
            # the picture after an action shows where the arm was before the next one: what `states` says
            joints = raw["states"][:][:, slice(*known["arm_qpos_columns_in_states"])]
            np.testing.assert_array_equal(raw["obs/joint_states"][:-1], joints[1:])
    assert [listed.instruction for listed in source.episodes] == ["pick up the alphabet soup and place it in the basket"] * 3
    assert source.action["unit"] == [0.05] * 3 + [0.5] * 3 + [1.0] and source.control_hz == 20


@needs_fixtures
def test_no_ops_can_be_left_out():
    path, found = FIXTURES / "libero_hdf5", facts("libero_hdf5")
    whole, kept = opened(path), opened(path, drop_no_ops=True)
    for listed in whole.episodes:
        steps = found["demos"][listed.name.rpartition(": ")[2]]["no_op_steps"]
        a, b = whole.read(listed, tuple(whole.cameras)), kept.read(listed, tuple(kept.cameras))
        left = [t for t in range(len(a.states)) if t not in steps]
        assert b.info["steps"] == left
        np.testing.assert_array_equal(b.actions, a.actions[[t - 1 for t in left[1:]]])
        np.testing.assert_array_equal(b.frames["image"], a.frames["image"][left])


@needs_fixtures
def test_robomimic_is_as_it_lies():
    import h5py

    path, found = FIXTURES / "robomimic_hdf5/image.hdf5", facts("robomimic_hdf5")
    source = opened(path, instruction="lift")
    with h5py.File(path) as file:
        for listed in source.episodes:
            demo = listed.name.rpartition(": ")[2]
            raw, episode = file["data"][demo], source.read(listed, tuple(source.cameras))
            assert short_hash(raw["actions"][:]) == found["demos"][demo]["sha256"]["actions"]
            np.testing.assert_allclose(episode.actions, raw["actions"][:], atol=1e-6)
            np.testing.assert_array_equal(episode.frames["agentview"][:-1], raw["obs/agentview_image"][:])
            np.testing.assert_array_equal(episode.frames["agentview"][-1], raw["next_obs/agentview_image"][-1])
            np.testing.assert_allclose(episode.states[:-1, :3], raw["obs/robot0_eef_pos"][:], atol=1e-6)
            assert not episode.success.any()  # random actions
    assert [listed.steps for listed in source.episodes] == [12, 9, 15, 10]
    trained = opened(path, instruction="lift", filter_key="train")
    assert [listed.name for listed in trained.episodes] == [f"image.hdf5: demo_{i}" for i in (1, 2, 3)]


@needs_fixtures
def test_rlds_matches_tensorflow_datasets():
    source, found = opened(FIXTURES / "rlds_tfds/libero_spatial_no_noops"), facts("rlds_tfds")
    expected = np.load(FIXTURES / "rlds_tfds/expected.npz")
    for number, (listed, known) in enumerate(zip(source.episodes, found["episodes_in_file_order"], strict=True)):
        episode = source.read(listed, tuple(source.cameras))
        assert (listed.steps, listed.instruction) == (known["length"], known["language_instruction"])
        np.testing.assert_array_equal(episode.actions, expected[f"ep{number}/action"][:-1])
        np.testing.assert_array_equal(episode.states, expected[f"ep{number}/state"])
        assert episode.success.tolist() == [False] * (known["length"] - 1) + [True]
        for camera in ("image", "wrist_image"):
            for step in known["image_steps_stored"]:
                apart = np.abs(episode.frames[camera][step].astype(int) - expected[f"ep{number}/{camera}/{step}"])
                assert apart.max() <= 22 and apart.mean() < 1.2  # the JPEG decoders differ by that much


# What these tests write themselves


@pytest.mark.parametrize("data, checksum", [(b"", 0), (b"123456789", 0xE3069283), (b"\0" * 32, 0x8A9136AA), (bytes(range(32)), 0x46DD794E)])
def test_crc32c_of_known_data(data, checksum):
    assert crc32c(data) == checksum


@pytest.mark.parametrize("size", [65_535, 65_536, 100_003, 300_000])
def test_crc32c_of_large_data_in_pieces(size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    crc = 0xFFFFFFFF
    for byte in data:  # the definition, bit by bit
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(data) == crc ^ 0xFFFFFFFF


def write(folder, format):
    if format == "libero":
        return libero_file(folder / "KITCHEN_SCENE3_open_the_drawer_demo.hdf5")
    if format == "robomimic":
        return robomimic_file(folder / "image.hdf5")
    if format == "rlds":
        return rlds_folder(folder / "set")
    return lerobot_folder(folder / "set", video=format == "video")


@pytest.mark.parametrize("format", ["libero", "robomimic", "rlds", "lerobot", "video"])
def test_every_format_is_found_out_and_read(tmp_path, format):
    path = write(tmp_path, format)
    assert detect(path) == ("lerobot" if format == "video" else format)
    source = opened(path, instruction="lift" if format == "robomimic" else None)
    assert len(source.episodes) == 2 and source.episodes[0].instruction in ("open the drawer", "lift", "open it", "pick it")
    for number, listed in enumerate(source.episodes):
        episode, bare = source.read(listed, tuple(source.cameras)), source.read(listed, ())
        steps = 6 - 2 * number - (format != "robomimic")
        assert episode.actions.shape[0] == steps and episode.states.shape == (steps + 1, len(source.state_names))
        assert all(pictures.shape == (steps + 1, 16, 16, 3) for pictures in episode.frames.values())
        assert list(episode.frames) == list(source.cameras) and bare.frames == {}
        np.testing.assert_array_equal(bare.actions, episode.actions)
        if format in ("lerobot", "video"):
            assert episode.outcome == "unknown"
        else:
            assert episode.success[-1] and not episode.success[:-1].any()


def test_videos_of_many_episodes_are_cut_at_the_right_frames(tmp_path):
    """By content: frames of an episode are the ones that were filmed, wherever in the file they lie."""
    source = opened(lerobot_folder(tmp_path / "set", lengths=(30,), video=True))
    episode = source.read(source.episodes[0], tuple(source.cameras))
    filmed = frames(0, 30).astype(int)
    apart = np.array([[np.abs(shown.astype(int) - picture).mean() for picture in filmed] for shown in episode.frames["front"]])
    assert (apart.argmin(1) == np.arange(30)).all()


def test_actions_are_given_as_recorded(tmp_path):
    path = lerobot_folder(tmp_path / "set", action=lambda n: (300 + 200 * numbers(n, n, 2)).astype(np.float32).tolist())
    source = opened(path)
    for listed in source.episodes:
        recorded = (300 + 200 * numbers(listed.steps, listed.steps, 2)).astype(np.float32)
        np.testing.assert_array_equal(source.read(listed, ()).actions, recorded[:-1])
    assert source.limits is None and source.gripper is None


def test_other_columns_can_be_the_state_and_the_action(tmp_path):
    path = robomimic_file(tmp_path / "image.hdf5")
    source = opened(path, state=["robot0_eef_pos"], instruction="lift")
    assert source.state_names == ["eef_pos_0", "eef_pos_1", "eef_pos_2"]
    with pytest.raises(UserError, match="no robot0_wings"):
        opened(path, state=["robot0_wings"], instruction="lift")


# Where cameras stand

LOOKING_DOWN = '<mujoco><worldbody><camera name="top" pos="0 0 2" quat="1 0 0 0" fovy="90"/><body><camera name="hand"/></body></worldbody></mujoco>'


def projected(camera, point):
    u, v, w = np.array(camera["intrinsics"]) @ np.array(camera["extrinsics"])[:3] @ np.r_[point, 1]
    return u / w, v / w, w


def test_a_mujoco_camera_in_our_convention():
    """From two metres above, 90 degrees wide: half a metre is a quarter of the way from the centre to the edge; y is up in the picture."""
    camera = mujoco_camera(LOOKING_DOWN, "top", (100, 200), mirrored=False)
    assert projected(camera, (0, 0, 0)) == pytest.approx((100, 50, 2))
    assert projected(camera, (0.5, 0, 0))[:2] == pytest.approx((112.5, 50)) and projected(camera, (0, 0.5, 0))[:2] == pytest.approx((100, 37.5))
    mirrored = mujoco_camera(LOOKING_DOWN, "top", (100, 200), mirrored=True)
    assert projected(mirrored, (0.5, 0, 0))[:2] == pytest.approx((87.5, 50))
    for model, name in ((LOOKING_DOWN, "hand"), (LOOKING_DOWN, "other"), ("no XML", "top"), ("<mujoco/>", "top")):
        assert mujoco_camera(model, name, (100, 200), mirrored=False) == {}


@needs_fixtures
@pytest.mark.parametrize("path, camera", [("libero_hdf5", "image"), ("robomimic_hdf5/image.hdf5", "agentview")])
def test_the_hand_is_seen_where_the_camera_says(path, camera):
    """What changes between the first and the last picture lies around the two places of the hand, mirrored pictures included."""
    source = opened(FIXTURES / path, instruction="lift")
    for listed in source.episodes:
        episode = source.read(listed, tuple(source.cameras))
        first, last = (np.array(projected(source.cameras[camera], episode.states[t, :3])[:2]) for t in (0, -1))
        changed = np.abs(episode.frames[camera][0].astype(int) - episode.frames[camera][-1]).max(-1) > 40
        rows, columns = np.nonzero(changed)
        height, width = changed.shape
        assert abs(columns.mean() - (first[0] + last[0]) / 2) < 0.08 * width
        assert (0 <= first).all() and first[0] < width and first[1] < height and rows.min() - 5 <= max(first[1], last[1]) <= rows.max() + 5
