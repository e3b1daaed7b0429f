"""Fully offline means that no real environment is opened once the exploration is there."""

import json

import pytest

from worldenv_cli.envs import vector
from worldenv_cli.evaluation.sections import agreement
from worldenv_cli.evaluation.stages import _agreement
from worldenv_cli.post_train.stages import _first_frames
from worldenv_cli.recipe import load_recipe
from worldenv_cli.stage_runner import open_run, run_stages

OFFLINE = ("rounds=1", "probe=0", "resets=0", "validation=0")


@pytest.fixture(scope="module")
def explored_run(tmp_path_factory):
    """(recipe, folder) of a miniature up to its exploration."""
    from conftest import MINI

    recipe = load_recipe(MINI, [f"post_train.{setting}" for setting in OFFLINE])
    folder = tmp_path_factory.mktemp("offline") / "run"
    run_stages(recipe, folder, ["ingest", "sft", "explore"])
    return recipe, folder


@pytest.fixture
def no_environment(monkeypatch):
    """Opening the real environment fails; how often it was tried."""
    tried = []

    class Unplugged:
        def __init__(self, *_, **__):
            tried.append(self)
            raise AssertionError("the real environment was opened")

    monkeypatch.setattr(vector, "RealVectorEnv", Unplugged)
    return tried


def test_post_training_and_imagined_evaluation_open_no_environment(explored_run, no_environment):
    recipe, folder = explored_run
    run_stages(recipe, folder, ["simulate", "calibrate", "post-train", "eval"])
    assert not no_environment
    imagined = json.loads((folder / "eval/imagined/imagined.json").read_text())
    assert imagined["starts"] == "held-out exploration" and set(imagined["arms"]) >= {"SFT", "post-trained", "filtered SFT"}
    for values in imagined["arms"].values():
        assert list(values) == list(recipe.env.tasks) and all(0 <= value <= 1 for value in values.values())
    with pytest.raises(AssertionError, match="opened"):  # what does play in it says so
        run_stages(recipe, folder, ["eval-real"])


def test_with_resets_it_is_opened(explored_run, no_environment, tmp_path):
    recipe, _ = explored_run
    with_resets = recipe.model_copy(update={"post_train": recipe.post_train.model_copy(update={"resets": 1})})
    assert _first_frames(open_run(recipe, tmp_path / "a", dry_run=True), 1) == []
    with pytest.raises(AssertionError, match="opened"):
        _first_frames(open_run(with_resets, tmp_path / "b", dry_run=True), 1)


def test_what_was_imagined_from_logged_frames_is_compared_with_all_real_starts_and_says_so():
    imagined, found, tasks = {"n": 1, "arms": {"SFT": {"a": 0.5}}}, {"SFT": {"outcomes": [True, False, False, False]}}, ["a"] * 4
    (same,), (logged,) = (_agreement(one, found, tasks) for one in (imagined, imagined | {"starts": "held-out exploration"}))
    assert (same["real"], same["n"]) == (1, 1) and (logged["real"], logged["n"]) == (0.25, 4)
    notes = [blocks[1][0].note for blocks in (agreement([same]), agreement([logged]))]
    assert "held-out exploration" not in notes[0] and "held-out exploration" in notes[1]
