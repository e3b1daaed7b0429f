"""Recorded data that is broken: told in one line, or of no consequence. First every field of a source's own description, in several ways."""

import copy
import json
import re

import h5py
import numpy as np
import pytest
from recorded import frames, lerobot_folder, libero_file, numbers, record, rlds_folder, robomimic_file
from typer.testing import CliRunner

from worldenv_cli.cli import app
from worldenv_cli.data.sources import SourceConfig, open_source
from worldenv_cli.errors import UserError

WRONG_VALUES = (None, 3, "x", [], {}, -1)
WRONG_ARRAYS = {
    "one number": lambda steps: np.float64(1),
    "flat": lambda steps: np.zeros(steps),
    "nothing": lambda steps: np.zeros((0, 7)),
    "four dimensions": lambda steps: np.zeros((steps, 2, 2, 2)),
    "words": lambda steps: np.array([b"up"] * steps),
    "flags": lambda steps: np.zeros((steps, 7), bool),
    "no numbers": lambda steps: np.full((steps, 7), np.nan),
}


HARMLESS = {("gone", "reward")}


def survives(path) -> bool:
    """Whether everything could be read; an error must be one of the user's, in one line."""
    try:
        source = open_source(path, SourceConfig(instruction="lift"))
        for listed in source.episodes:
            source.read(listed, tuple(source.cameras))
        return True
    except UserError as error:
        assert "\n" not in str(error)
        return False


def broken(tree, path=()):
    """(where, the same tree with one thing changed or gone), for everything in it."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
    for key, value in entries:
        for wrong in WRONG_VALUES:
            changed = copy.deepcopy(tree)
            changed[key] = wrong
            yield (*path, key, wrong), changed
        if isinstance(tree, dict):
            yield (*path, key, "gone"), {name: found for name, found in tree.items() if name != key}
        for where, inner in broken(value, (*path, key)):
            changed = copy.deepcopy(tree)
            changed[key] = inner
            yield where, changed


def every_way(folder, file):
    tree, seen = json.loads(file.read_text()), []
    assert survives(folder)
    for where, changed in [*broken(tree), *(((wrong,), wrong) for wrong in (None, [], 3, "x"))]:
        file.write_text(json.dumps(changed))
        seen.append((where, survives(folder)))
    return seen


@pytest.mark.parametrize("video", [False, True])
def test_lerobot_info(tmp_path, video):
    folder = lerobot_folder(tmp_path / "set", lengths=(3,), video=video)
    seen = every_way(folder, folder / "meta/info.json")
    assert len(seen) > 200 and sum(not fine for _, fine in seen) > 80
    assert all(fine for where, fine in seen if where[0] == "robot_type" and isinstance(where[-1], (str, type(None))))


def test_lerobot_episodes(tmp_path):
    folder = lerobot_folder(tmp_path / "set", lengths=(3,))
    seen = every_way(folder, folder / "meta/episodes.jsonl")
    assert len(seen) > 25 and sum(fine for _, fine in seen) < len(seen) / 2


def test_rlds_features(tmp_path):
    folder = rlds_folder(tmp_path / "set", lengths=(3,))
    seen = every_way(folder, folder / "1.0.0/features.json")
    assert len(seen) > 200 and sum(not fine for _, fine in seen) > 100


@pytest.mark.parametrize("name", ["action", "observation/state", "observation/image", "reward", "language_instruction"])
def test_rlds_entries(tmp_path, name):
    ways = {
        "gone": None,
        "bytes": lambda n: [b"x"] * n,
        "one": lambda n: np.zeros(1),
        "none": lambda n: np.zeros(0),
        "integers": lambda n: np.zeros(n * 7, int),
    }
    for number, (way, values) in enumerate(ways.items()):
        fine = survives(rlds_folder(tmp_path / f"{number}", **{f"steps/{name}": values}))
        assert not fine or name == "language_instruction" or (way, name) in HARMLESS, way


@pytest.mark.parametrize("name", ["actions", "obs/agentview_rgb", "obs/ee_states", "obs/gripper_states"])
def test_libero_arrays(tmp_path, name):
    for way, values in WRONG_ARRAYS.items():
        fine = survives(libero_file(tmp_path / f"{way} {name.replace('/', ' ')}_demo.hdf5", **{name: values}))
        assert not fine or (way == "flags" and name != "obs/agentview_rgb") or (way in ("flat", "four dimensions") and "states" in name), way


@pytest.mark.parametrize(
    "name", ["actions", "rewards", "obs/agentview_image", "next_obs/agentview_image", "obs/robot0_eef_pos", "next_obs/robot0_eef_pos"]
)
def test_robomimic_arrays(tmp_path, name):
    for way, values in WRONG_ARRAYS.items():
        fine = survives(robomimic_file(tmp_path / f"{way}.hdf5", **{name: values}))
        assert not fine or (name, way) == ("actions", "flags") or (name == "rewards" and way not in ("one number", "nothing", "words")), way


@pytest.mark.parametrize("write", [libero_file, robomimic_file])
def test_attributes_of_hdf5_files(tmp_path, write):
    texts = ["", "[]", "null", "3", '{"env_kwargs": 3}', '{"env_kwargs": {"control_freq": "x"}}', '{"env_kwargs": {"control_freq": null}}']
    for number, text in enumerate([*texts, '{"env_kwargs": {"controller_configs": []}}', '{"env_kwargs": {"robots": []}}', "{}"]):
        path = write(tmp_path / f"open_it{number}_demo.hdf5")
        with h5py.File(path, "a") as file:
            file["data"].attrs["env_args"] = text
        assert survives(path) == ("null}" in text or "[]}" in text or text == "{}"), text


# One thing in a file, by the command


def nan_at(steps, width, row):
    values = numbers(0, steps, width)
    values[row] = np.nan
    return values


BROKEN = {
    "libero: cut off": (lambda p: cut(libero_file(p / "a_demo.hdf5"), 2000), "not a whole HDF5 file"),
    "libero: text": (lambda p: text(p / "a_demo.hdf5"), "not a whole HDF5 file"),
    "libero: empty file": (lambda p: text(p / "a_demo.hdf5", ""), "not a whole HDF5 file"),
    "libero: no demonstrations": (lambda p: libero_file(p / "a_demo.hdf5", lengths=()), "no demonstrations"),
    "libero: no pictures": (lambda p: libero_file(p / "a_demo.hdf5", **{"obs/agentview_rgb": None, "obs/eye_in_hand_rgb": None}), "no pictures"),
    "libero: no actions": (lambda p: libero_file(p / "a_demo.hdf5", actions=None), "no actions"),
    "libero: a picture missing": (lambda p: libero_file(p / "a_demo.hdf5", **{"obs/agentview_rgb": lambda n: frames(0, n - 1)}), "lengths differ"),
    "libero: a state missing": (lambda p: libero_file(p / "a_demo.hdf5", **{"obs/ee_states": lambda n: numbers(0, n - 1, 6)}), "lengths differ"),
    "libero: NaN": (lambda p: libero_file(p / "a_demo.hdf5", actions=lambda n: nan_at(n, 7, 2)), "nan in row 2"),
    "libero: one step": (lambda p: libero_file(p / "a_demo.hdf5", lengths=(1,)), "1 steps, expected three"),
    "libero: no step": (lambda p: libero_file(p / "a_demo.hdf5", lengths=(0,)), "0 steps, expected three"),
    "libero: words for actions": (lambda p: libero_file(p / "a_demo.hdf5", actions=lambda n: np.array([[b"up"] * 7] * n)), "expected numbers"),
    "robomimic: cut off": (lambda p: cut(robomimic_file(p / "a.hdf5"), 2000), "not a whole HDF5 file"),
    "robomimic: NaN": (lambda p: robomimic_file(p / "a.hdf5", actions=lambda n: nan_at(n, 7, 1)), "nan in row 1"),
    "robomimic: infinite": (lambda p: robomimic_file(p / "a.hdf5", actions=lambda n: np.full((n, 7), np.inf)), "inf in row 0"),
    "robomimic: two rewards": (lambda p: robomimic_file(p / "a.hdf5", rewards=lambda n: numbers(0, n, 2)), r"rewards: shape \(6, 2\)"),
    "robomimic: too few pictures": (
        lambda p: robomimic_file(p / "a.hdf5", **{"obs/agentview_image": lambda n: frames(0, n - 2)}),
        r"\(6, 16, 16, 3\) in next_obs, but \(4, 16, 16, 3\) in obs",
    ),
    "robomimic: no step": (lambda p: robomimic_file(p / "a.hdf5", lengths=(0,)), "expected"),
    "rlds: cut off": (lambda p: cut(rlds_folder(p / "set"), 3000), "but the file ends"),
    "rlds: cut in a head": (lambda p: cut(rlds_folder(p / "set", lengths=(3,)), 5), "inside a record's head"),
    "rlds: a byte changed": (lambda p: changed(rlds_folder(p / "set"), 500), "damaged"),
    "rlds: the length changed": (lambda p: changed(rlds_folder(p / "set"), 2), "checksum of the length"),
    "rlds: no pictures": (lambda p: rlds_folder(p / "set", **{"steps/observation/image": None}), "0 pictures for 6 steps"),
    "rlds: no actions": (lambda p: rlds_folder(p / "set", **{"steps/action": None}), "none, expected floats"),
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
    "lerobot: a rate in words": (lambda p: lerobot_folder(p / "set", info={"fps": "12"}), "fps is '12'"),
    "lerobot: path climbs out": (lambda p: lerobot_folder(p / "set", info={"data_path": "../{episode_index}.parquet"}), "inside the dataset"),
    "lerobot: absolute path": (lambda p: lerobot_folder(p / "set", info={"data_path": "/etc/passwd"}), "inside the dataset"),
    "lerobot: path with attributes": (lambda p: lerobot_folder(p / "set", info={"data_path": "{episode_index.x}"}), "inside the dataset"),
    "lerobot: video path climbs out": (
        lambda p: lerobot_folder(p / "set", video=True, info={"video_path": "../../{video_key}.mp4"}),
        "inside the dataset",
    ),
    "lerobot: episodes missing": (lambda p: without(lerobot_folder(p / "set"), "meta/episodes.jsonl"), "missing"),
    "lerobot: episodes are no JSON": (lambda p: spoilt(lerobot_folder(p / "set"), "meta/episodes.jsonl"), "line 1: not JSON"),
    "lerobot: more rows than told": (lambda p: longer(lerobot_folder(p / "set")), "6 rows, expected 9 as meta/episodes says"),
    "lerobot: NaN": (lambda p: lerobot_folder(p / "set", action=lambda n: nan_at(n, 2, 1).astype(np.float32).tolist()), "nan in row 1"),
    "lerobot: wide actions": (lambda p: lerobot_folder(p / "set", action=lambda n: numbers(0, n, 3).tolist()), r"3 numbers in row 0, expected \[2\]"),
    "lerobot: one row": (lambda p: lerobot_folder(p / "set", lengths=(1,)), "1 row, expected two"),
    "lerobot: no picture": (
        lambda p: lerobot_folder(p / "set", **{"observation.images.front": lambda n: [{"bytes": b"", "path": None}] * n}),
        "no picture there",
    ),
    "lerobot: a bomb": (
        lambda p: lerobot_folder(p / "set", **{"observation.images.front": lambda n: [{"bytes": bomb(), "path": None}] * n}),
        "expected|not a whole PNG",
    ),
    "version 3: episodes cut off": (lambda p: cut(version_3(p), 900, "meta/episodes/*/*.parquet"), "not a whole parquet file"),
    "version 3: no episodes": (lambda p: without(version_3(p), "meta/episodes/*/*.parquet"), "0 episodes, expected 2"),
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
    result = CliRunner().invoke(app, ["ingest", str(path), "--out", str(out), "--instruction", "lift", "--control-hz", "10"])
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
        open_source(path, SourceConfig())
