"""Recorded data of other projects: what their own code reads back is what we read, and what is broken is told in one line."""

import hashlib
import json
import re

import numpy as np
import pytest
from recorded import FIXTURES, frames, lerobot_folder, libero_file, numbers, record, rlds_folder, robomimic_file
from typer.testing import CliRunner

from worldenv_cli.cli import app
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
        episode = source.read(listed, True)
        rows = slice(first, first + listed.steps)
        np.testing.assert_array_equal(episode.states, expected["all/observation.state"][rows])
        recorded = np.array(source.action.get("offset", 0)) + np.array(source.action["unit"] or 1) * episode.actions
        np.testing.assert_allclose(recorded, expected["all/action"][rows][:-1], atol=1e-6)
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
            raw, known, episode = file["data"][demo], found["demos"][demo], source.read(listed, True)
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
        a, b = whole.read(listed, True), kept.read(listed, True)
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
            raw, episode = file["data"][demo], source.read(listed, True)
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
        episode = source.read(listed, True)
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
        episode, bare = source.read(listed, True), source.read(listed, False)
        steps = 6 - 2 * number - (format != "robomimic")
        assert episode.actions.shape[0] == steps and episode.states.shape == (steps + 1, len(source.state_names))
        assert all(pictures.shape == (steps + 1, 16, 16, 3) for pictures in episode.frames.values())
        assert list(episode.frames) == list(source.cameras) and bare.frames == {}
        np.testing.assert_array_equal(bare.actions, episode.actions)
        assert episode.success[-1] and not episode.success[:-1].any()


def test_videos_of_many_episodes_are_cut_at_the_right_frames(tmp_path):
    """By content: frames of an episode are the ones that were filmed, wherever in the file they lie."""
    source = opened(lerobot_folder(tmp_path / "set", lengths=(30,), video=True))
    episode = source.read(source.episodes[0], True)
    filmed = frames(0, 30).astype(int)
    apart = np.array([[np.abs(shown.astype(int) - picture).mean() for picture in filmed] for shown in episode.frames["front"]])
    assert (apart.argmin(1) == np.arange(30)).all()


def test_actions_outside_the_unit_range_are_scaled_and_the_scale_is_told(tmp_path):
    path = lerobot_folder(tmp_path / "set", action=lambda n: (300 + 200 * numbers(n, n, 2)).astype(np.float32).tolist())
    source = opened(path)
    for listed in source.episodes:
        scaled = source.read(listed, False).actions
        assert np.abs(scaled).max() <= 1
        recorded = np.array(source.action["offset"]) + np.array(source.action["unit"]) * scaled
        np.testing.assert_allclose(recorded, 300 + 200 * numbers(listed.steps, listed.steps, 2)[:-1], rtol=1e-5)


def test_other_columns_can_be_the_state_and_the_action(tmp_path):
    path = robomimic_file(tmp_path / "image.hdf5")
    source = opened(path, state=["robot0_eef_pos"], instruction="lift")
    assert source.state_names == ["eef_pos_0", "eef_pos_1", "eef_pos_2"]
    with pytest.raises(UserError, match="no robot0_wings"):
        opened(path, state=["robot0_wings"], instruction="lift")


# What is broken


def nan_at(steps, width, row):
    values = numbers(0, steps, width)
    values[row] = np.nan
    return values


BROKEN = {
    "libero: cut off": (lambda p: cut(libero_file(p / "a_demo.hdf5"), 2000), "not a whole HDF5 file"),
    "libero: text": (lambda p: text(p / "a_demo.hdf5"), "not a whole HDF5 file"),
    "libero: empty file": (lambda p: text(p / "a_demo.hdf5", ""), "not a whole HDF5 file"),
    "libero: no demonstrations": (lambda p: libero_file(p / "a_demo.hdf5", lengths=()), "no demonstrations"),
    "libero: no pictures": (lambda p: libero_file(p / "a_demo.hdf5", **{"obs/agentview_rgb": None}), "no agentview_rgb"),
    "libero: no actions": (lambda p: libero_file(p / "a_demo.hdf5", actions=None), "no actions"),
    "libero: grey pictures": (lambda p: libero_file(p / "a_demo.hdf5", **{"obs/agentview_rgb": lambda n: frames(0, n)[..., :1]}), "expected uint8"),
    "libero: float pictures": (lambda p: libero_file(p / "a_demo.hdf5", **{"obs/agentview_rgb": lambda n: frames(0, n) / 255}), "expected uint8"),
    "libero: a picture missing": (lambda p: libero_file(p / "a_demo.hdf5", **{"obs/agentview_rgb": lambda n: frames(0, n - 1)}), "lengths differ"),
    "libero: a state missing": (lambda p: libero_file(p / "a_demo.hdf5", **{"obs/ee_states": lambda n: numbers(0, n - 1, 6)}), "lengths differ"),
    "libero: NaN": (lambda p: libero_file(p / "a_demo.hdf5", actions=lambda n: nan_at(n, 7, 2)), "nan in row 2"),
    "libero: large actions": (lambda p: libero_file(p / "a_demo.hdf5", actions=lambda n: 3 * numbers(0, n, 7)), r"expected \[-1, 1\]"),
    "libero: one step": (lambda p: libero_file(p / "a_demo.hdf5", lengths=(1,)), "1 steps, expected three"),
    "libero: no step": (lambda p: libero_file(p / "a_demo.hdf5", lengths=(0,)), "0 steps, expected three"),
    "libero: words for actions": (lambda p: libero_file(p / "a_demo.hdf5", actions=lambda n: np.array([[b"up"] * 7] * n)), "expected numbers"),
    "robomimic: cut off": (lambda p: cut(robomimic_file(p / "a.hdf5"), 2000), "not a whole HDF5 file"),
    "robomimic: NaN": (lambda p: robomimic_file(p / "a.hdf5", actions=lambda n: nan_at(n, 7, 1)), "nan in row 1"),
    "robomimic: infinite": (lambda p: robomimic_file(p / "a.hdf5", actions=lambda n: np.full((n, 7), np.inf)), "inf in row 0"),
    "robomimic: too few pictures": (
        lambda p: robomimic_file(p / "a.hdf5", **{"obs/agentview_image": lambda n: frames(0, n - 2)}),
        r"\(6, 16, 16, 3\) in next_obs, but \(4, 16, 16, 3\) in obs",
    ),
    "robomimic: no rewards": (lambda p: robomimic_file(p / "a.hdf5", rewards=None), "no rewards"),
    "robomimic: no step": (lambda p: robomimic_file(p / "a.hdf5", lengths=(0,)), "expected"),
    "rlds: cut off": (lambda p: cut(rlds_folder(p / "set"), 3000), "but the file ends"),
    "rlds: cut in a head": (lambda p: cut(rlds_folder(p / "set", lengths=(3,)), 5), "inside a record's head"),
    "rlds: a byte changed": (lambda p: changed(rlds_folder(p / "set"), 500), "damaged"),
    "rlds: the length changed": (lambda p: changed(rlds_folder(p / "set"), 2), "checksum of the length"),
    "rlds: no pictures": (lambda p: rlds_folder(p / "set", **{"steps/observation/image": None}), "0 pictures for 6 steps"),
    "rlds: no actions": (lambda p: rlds_folder(p / "set", **{"steps/action": None}), "none numbers, expected 7"),
    "rlds: actions of another width": (lambda p: rlds_folder(p / "set", **{"steps/action": lambda n: numbers(0, n * 6)}), "expected 7"),
    "rlds: half a state": (lambda p: rlds_folder(p / "set", **{"steps/observation/state": lambda n: numbers(0, n * 4)}), "rows for 6 steps"),
    "rlds: NaN": (lambda p: rlds_folder(p / "set", **{"steps/action": lambda n: nan_at(n, 7, 1).ravel()}), "nan in row 1"),
    "rlds: no JPEG": (lambda p: rlds_folder(p / "set", **{"steps/observation/image": lambda n: [b"x"] * n}), "not a whole PNG or JPEG"),
    "rlds: one step": (lambda p: rlds_folder(p / "set", lengths=(1,)), "1 steps, expected two"),
    "rlds: no shards": (lambda p: without(rlds_folder(p / "set"), "1.0.0/*.tfrecord*"), "no .tfrecord files"),
    "rlds: features are no JSON": (lambda p: spoilt(rlds_folder(p / "set"), "1.0.0/features.json"), "not the features"),
    "rlds: no Example": (lambda p: replaced(rlds_folder(p / "set"), record(b"\x0b\x0b\x0b")), "no tf.train.Example"),
    "lerobot: table cut off": (lambda p: cut(lerobot_folder(p / "set"), 700, "data/*/*0.parquet"), "not a whole parquet file"),
    "lerobot: table missing": (lambda p: without(lerobot_folder(p / "set"), "data/*/*1.parquet"), "missing"),
    "lerobot: video missing": (lambda p: without(lerobot_folder(p / "set", video=True), "videos/*/*/*1.mp4"), "missing"),
    "lerobot: video cut off": (lambda p: cut(lerobot_folder(p / "set", video=True), 300, "videos/*/*/*0.mp4"), "not a whole video"),
    "lerobot: video is text": (lambda p: spoilt(lerobot_folder(p / "set", video=True), "videos/*/*/*0.mp4"), "not a whole video"),
    "lerobot: version": (lambda p: lerobot_folder(p / "set", version="v1.6"), "expected one of v2.0"),
    "lerobot: info is no JSON": (lambda p: spoilt(lerobot_folder(p / "set"), "meta/info.json"), "not JSON"),
    "lerobot: no features": (lambda p: lerobot_folder(p / "set", info={"features": {}}), "no feature 'observation.state'"),
    "lerobot: rate of 0": (lambda p: lerobot_folder(p / "set", info={"fps": 0}), "fps is 0"),
    "lerobot: half a rate": (lambda p: lerobot_folder(p / "set", info={"fps": 12.5}), "fps is 12.5"),
    "lerobot: path climbs out": (lambda p: lerobot_folder(p / "set", info={"data_path": "../{episode_index}.parquet"}), "inside the dataset"),
    "lerobot: absolute path": (lambda p: lerobot_folder(p / "set", info={"data_path": "/etc/passwd"}), "inside the dataset"),
    "lerobot: path with attributes": (lambda p: lerobot_folder(p / "set", info={"data_path": "{episode_index.x}"}), "inside the dataset"),
    "lerobot: video path climbs out": (
        lambda p: lerobot_folder(p / "set", video=True, info={"video_path": "../../{video_key}.mp4"}),
        "inside the dataset",
    ),
    "lerobot: episodes missing": (lambda p: without(lerobot_folder(p / "set"), "meta/episodes.jsonl"), "missing"),
    "lerobot: episodes are no JSON": (lambda p: spoilt(lerobot_folder(p / "set"), "meta/episodes.jsonl"), "line 1: not JSON"),
    "lerobot: more rows than told": (lambda p: longer(lerobot_folder(p / "set")), "rows, expected 9 in one piece"),
    "lerobot: NaN": (lambda p: lerobot_folder(p / "set", action=lambda n: nan_at(n, 2, 1).astype(np.float32).tolist()), "nan in row 1"),
    "lerobot: wide actions": (lambda p: lerobot_folder(p / "set", action=lambda n: numbers(0, n, 3).tolist()), r"expected \[2\] a row"),
    "lerobot: one row": (lambda p: lerobot_folder(p / "set", lengths=(1,)), "1 row, expected two"),
    "lerobot: no picture": (
        lambda p: lerobot_folder(p / "set", **{"observation.images.front": lambda n: [{"bytes": b"", "path": None}] * n}),
        "not a whole PNG or JPEG",
    ),
    "lerobot: a bomb": (
        lambda p: lerobot_folder(p / "set", **{"observation.images.front": lambda n: [{"bytes": bomb(), "path": None}] * n}),
        "expected|not a whole PNG",
    ),
    "version 3: episodes cut off": (lambda p: cut(version_3(p), 900, "meta/episodes/*/*.parquet"), "not a whole parquet file"),
    "version 3: no episodes": (lambda p: without(version_3(p), "meta/episodes/*/*.parquet"), "no episodes"),
    "version 3: no tasks": (lambda p: without(version_3(p), "meta/tasks.parquet"), "missing"),
    "version 3: tasks are text": (lambda p: spoilt(version_3(p), "meta/tasks.parquet"), "not a whole parquet file"),
    "version 3: table missing": (lambda p: without(version_3(p), "data/*/*.parquet"), "missing"),
    "version 3: table cut off": (lambda p: cut(version_3(p), 2000, "data/*/*.parquet"), "not a whole parquet file"),
    "version 3: video missing": (lambda p: without(version_3(p), "videos/*/*/*.mp4"), "missing"),
    "version 3: video cut off": (lambda p: cut(version_3(p), 500, "videos/*/*/*.mp4"), "not a whole video|ends before"),
    "nothing there": (lambda p: p / "nothing", "does not exist"),
    "an empty folder": (lambda p: p, "none of lerobot"),
}


def version_3(folder):
    """A dataset of ours, with video."""
    path, out = robomimic_file(folder / "image.hdf5"), folder / "set"
    done = CliRunner().invoke(app, ["ingest", str(path), "--out", str(out), "--instruction", "lift", "--video"])
    assert done.exit_code == 0, done.output
    return out


def cut(path, size, pattern="**/*.tfrecord*"):
    file = path if path.is_file() else next(path.glob(pattern))
    file.write_bytes(file.read_bytes()[:size])
    return path


def changed(path, place):
    file = next(path.glob("**/*.tfrecord*"))
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    return path


def replaced(path, body):
    next(path.glob("**/*.tfrecord*")).write_bytes(body)
    return path


def without(path, pattern):
    next(path.glob(pattern)).unlink()
    return path


def spoilt(path, pattern):
    next(path.glob(pattern)).write_text("{not what it should be")
    return path


def longer(path):
    file = path / "meta/episodes.jsonl"
    file.write_text(file.read_text().replace('"length": 6', '"length": 9'))
    return path


def text(path, words="hello"):
    path.write_text(words)
    return path


def bomb():
    """The head of a PNG of 100,000 x 100,000 pixels."""
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data_is_told_in_one_line(tmp_path, case):
    """By the command, with exit code 2, and nothing is left behind."""
    make, reason = BROKEN[case]
    path, out = make(tmp_path), tmp_path / "out" / "set"
    result = CliRunner().invoke(app, ["ingest", str(path), "--out", str(out), "--instruction", "lift"])
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.output
    assert re.search(reason, result.stderr) and str(tmp_path) in result.stderr, result.stderr
    assert not out.exists()


def test_links_out_of_an_hdf5_file_are_not_followed(tmp_path):
    import h5py

    secret = tmp_path / "secret.hdf5"
    with h5py.File(secret, "w") as file:
        file["x"] = numbers(0, 6, 7)
    path = libero_file(tmp_path / "a_demo.hdf5", lengths=(6,), actions=None)
    with h5py.File(path, "a") as file:
        file["data/demo_0/actions"] = h5py.ExternalLink("secret.hdf5", "x")
    with pytest.raises(UserError, match="a link to another file"):
        opened(path)


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
        episode = source.read(listed, True)
        first, last = (np.array(projected(source.cameras[camera], episode.states[t, :3])[:2]) for t in (0, -1))
        changed = np.abs(episode.frames[camera][0].astype(int) - episode.frames[camera][-1]).max(-1) > 40
        rows, columns = np.nonzero(changed)
        height, width = changed.shape
        assert abs(columns.mean() - (first[0] + last[0]) / 2) < 0.08 * width
        assert (0 <= first).all() and first[0] < width and first[1] < height and rows.min() - 5 <= max(first[1], last[1]) <= rows.max() + 5
