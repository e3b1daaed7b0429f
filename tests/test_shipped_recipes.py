"""The recipes in recipes/: they load, and the one for GPUs runs from end to end in miniature."""

import json
import tomllib
from pathlib import Path

import pytest
from conftest import COFFEE

from worldenv_cli.errors import UserError
from worldenv_cli.recipe import load_recipe
from worldenv_cli.shipped import SHIPPED, names, summary
from worldenv_cli.stage_runner import run_stages

MINIATURE = [
    "device=cpu",
    f"env.tasks={{{COFFEE}: press the button of the coffee machine}}",
    "env.horizon=64",
    "env.rows=2",
    "env.workers=1",
    "ingest.demos_per_task=2",
    "policy={channels: [16, 16], width: 32, layers: 1, text: {width: 32, layers: 1}}",
    "sft={steps: 3, batch: 4, scale_steps: 1, bf16: true}",
    "explore={episodes: 4, held_out: 2, noise: [0.0, 0.3]}",
    "simulator={bank: 60, hidden: 16, unet: {channels: [16, 24], layers: 2}}",
    "simulate={proprioception: {steps: 2, batch: 4}, video: {steps: 3, batch: 2, bf16: true}}",
    "reflector={channels: [16, 16, 16], width: 32, text: {width: 32, layers: 1}}",
    "calibrate.training={steps: 2, batch: 4, bf16: true}",
    "world_env.rows=4",
    "post_train.rounds=1",
    "post_train.resets=2",
    "post_train.validation=1",
    "post_train.gate={gap: 1.0, auc: 0.0, success_min: 0.0, success_max: 1.0}",
    "post_train.updates={updates: 1, starts: 2, group: 2, minibatch: 64}",
    "post_train.filter={steps: 2, batch: 4, scale_steps: 1, bf16: true}",
    "eval={starts: 1, imagined_starts: 1}",
]


def test_the_list_of_recipes_fits_a_terminal():
    assert max(len(name) for name in names()) + 2 + max(len(summary(name)) for name in names()) <= 80


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem and len(recipe.env.tasks) >= 4 and recipe.eval.starts * len(recipe.env.tasks) >= 300


def test_the_recipe_for_gpus_runs_in_miniature(tmp_path):
    """128 pixels, bfloat16 and one round without a second model, on a CPU."""
    recipe = load_recipe("metaworld", MINIATURE)
    assert recipe.env.resolution == 128 and recipe.simulator.resolution == 128
    run_stages(recipe, tmp_path)
    report = json.loads((tmp_path / "eval.json").read_text())
    assert [arm["name"] for arm in report["arms"]][:3] == ["SFT", "filtered SFT", "post-trained"]
    assert report["protocol"]["resolution"] == 128 and (tmp_path / "report.html").stat().st_size > 5000


@pytest.mark.parametrize(
    "change, told",
    [
        ("policy.resolution=128", "policy.resolution is 128, but the environment has 64"),
        ("simulator.chunk=2", "simulator.chunk is 2, but the environment has 4"),
        ("reflector.camera=wrist", "reflector.camera is 'wrist', but the environment has 'front'"),
        ("world_env.horizon=16", "world_env.horizon is 16, but the environment has 32"),
        ("world_env.rows=4", "world_env.rows is 4, less than one group"),
    ],
)
def test_what_the_environment_fixes_cannot_be_set_otherwise(change, told):
    with pytest.raises(UserError, match=told):
        load_recipe("quickstart", [change])


def test_what_the_environment_fixes_reaches_the_models():
    recipe = load_recipe("quickstart", ["env.resolution=96", "env.horizon=64"])
    assert {recipe.policy.resolution, recipe.simulator.resolution, recipe.reflector.resolution} == {96} and recipe.world_env.horizon == 16
    assert load_recipe("quickstart", ["world_env.horizon=32"]).world_env.horizon == 32


def test_a_gpu_that_is_not_there_is_told(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="device is 'cuda', but torch finds no GPU"):
        run_stages(load_recipe("quickstart", ["device=cuda"]), tmp_path, ["sft"])


def test_a_wheel_holds_every_package_and_the_recipes():
    root = Path(__file__).resolve().parent.parent
    setup = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {".".join(path.parent.relative_to(root).parts) for path in (root / "worldenv_cli").rglob("__init__.py")}
    assert set(setup["packages"]) == packages | {"worldenv_cli.recipes"}
    assert setup["package-dir"] == {"worldenv_cli.recipes": "recipes"} and setup["package-data"] == {"worldenv_cli.recipes": ["*.yaml"]}
    assert {path.stem for path in (root / "recipes").glob("*.yaml")} == set(names()) and all(len(summary(name).split()) > 5 for name in names())
