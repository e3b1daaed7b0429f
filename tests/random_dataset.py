"""Datasets of random episodes, written by our own writer, for the tests of the dataset on disk."""

import shutil
from pathlib import Path

import numpy as np

from worldenv_cli.data.dataset import Episode, write_dataset

DESCRIPTION = {"control_hz": 20, "environment_hz": 80, "cameras": {"front": {"intrinsics": [[1.5, 0, 0.5]]}}}


def make_episode(
    seed: int, steps: int = 5, states: int = 3, actions: int = 2, cameras=(("front", 12, 16), ("wrist", 8, 8)), task: str = "push"
) -> Episode:
    random = np.random.default_rng(seed)
    return Episode(
        frames={name: random.integers(0, 256, (steps + 1, height, width, 3), dtype=np.uint8) for name, height, width in cameras},
        states=random.normal(size=(steps + 1, states)).astype(np.float32),
        actions=random.uniform(-1, 1, (steps, actions)).astype(np.float32),
        success=np.arange(steps + 1) > random.integers(0, steps + 2),
        instruction=task,
        info={"task": task, "seed": seed, "noise": 0.1 + seed, "note": "ü\n", "nested": {"list": [1, None, True]}},
    )


def write(folder: Path, episodes, **changed) -> Path:
    states, actions = changed.pop("sizes", (3, 2))
    names = {"state_names": [f"s{i}" for i in range(states)], "action_names": [f"a{i}" for i in range(actions)]}
    write_dataset(folder, iter(episodes), **({"fps": 20, **names, "description": DESCRIPTION, "robot_type": "sawyer"} | changed))
    return folder


def assert_same(found: list[Episode], expected: list[Episode]) -> None:
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert list(left.frames) == list(right.frames)
        for name in right.frames:
            np.testing.assert_array_equal(left.frames[name], right.frames[name])
            assert left.frames[name].dtype == np.uint8
        for name, dtype in (("states", np.float32), ("actions", np.float32), ("success", np.bool_)):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
            assert getattr(left, name).dtype == dtype
        assert (left.instruction, left.info) == (right.instruction, right.info)


def several() -> list[Episode]:
    return [make_episode(seed, steps, task=task) for seed, (steps, task) in enumerate([(5, "push"), (1, "pull it"), (9, "push"), (40, "lift")])]


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))
