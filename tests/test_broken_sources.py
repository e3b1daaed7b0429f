"""Every field of a source's own description, broken in several ways one after the other: told in one line or of no consequence, never a crash."""

import copy
import json

import h5py
import numpy as np
import pytest
from recorded import lerobot_folder, libero_file, rlds_folder, robomimic_file

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


HARMLESS = {("gone", "reward"), ("integers", "action"), ("integers", "reward")}


def survives(path) -> bool:
    """Whether everything could be read; an error must be one of the user's, in one line."""
    try:
        source = open_source(path, SourceConfig(instruction="lift"))
        for listed in source.episodes:
            source.read(listed, True)
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
    assert len(seen) > 200 and sum(not fine for _, fine in seen) > 100
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
        assert survives(path) == (text in ("{}", '{"env_kwargs": {"robots": []}}')), text
