import subprocess
import sys
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from worldenv_cli import recipe as module
from worldenv_cli import recipe_yaml
from worldenv_cli.config import Config
from worldenv_cli.envs.camera import CameraConfig
from worldenv_cli.errors import UserError
from worldenv_cli.recipe import Recipe, load_recipe, resolved_yaml
from worldenv_cli.stage_runner import run_stages

GOOD = """\
name: tiny
env:
  tasks:
    reach-v3: reach the goal
  rows: 8
"""


class Lora(Config):
    kind: Literal["lora"] = "lora"
    rank: int = 32


class Full(Config):
    kind: Literal["full"] = "full"
    rate: float = 1e-3


class Training(Config):
    steps: int = 100
    rates: tuple[float, ...] = (1e-3, 1e-4)
    tuning: Annotated[Lora | Full, Field(discriminator="kind")] = Lora(rank=8)
    extra: Lora | None = None
    parts: list[Lora] = [Lora(rank=1), Lora(rank=2)]

    @field_validator("steps")
    @classmethod
    def even(cls, steps):
        if steps % 2:
            raise ValueError("steps must be even, so that both halves are alike")
        return steps

    @model_validator(mode="after")
    def enough(self):
        if self.steps < len(self.rates):
            raise ValueError("fewer steps than rates")
        return self


class Bigger(Recipe):
    training: Training = Training(steps=50)


@pytest.fixture
def load(tmp_path):
    def load(text=GOOD, *overrides, cls=Recipe):
        (tmp_path / "my.yaml").write_text(text)
        return load_recipe(tmp_path / "my.yaml", overrides, cls)

    return load


@pytest.fixture
def complaint(load, tmp_path):
    """What is said about a recipe, with the folder cut off."""

    def complaint(text=GOOD, *overrides, cls=Recipe):
        with pytest.raises(UserError) as caught:
            load(text, *overrides, cls=cls)
        said = str(caught.value)
        assert "\n" not in said
        return said.replace(f"{tmp_path}/", "")

    return complaint


def test_reads(load):
    recipe = load()
    assert recipe.name == "tiny" and recipe.seed == 0 and recipe.env.rows == 8 and recipe.env.tasks == {"reach-v3": "reach the goal"}
    assert str(recipe.folder) == "runs/tiny"
    assert str(load(GOOD + "out: /big/{name}/x\n").folder) == "/big/tiny/x"
    with pytest.raises(ValidationError):
        recipe.seed = 3


def test_resolved_yaml_loads_again(load):
    recipe = load(GOOD, "training.rates=[1e-5, 0.1]", "env.tasks.push-v3=schön", cls=Bigger)
    text = resolved_yaml(recipe)
    assert load(text, cls=Bigger) == recipe
    assert text.startswith("name: tiny\nseed: 0\n") and "schön" in text and "distance: " in text


def test_overrides(load):
    recipe = load(
        GOOD,
        "seed=3",
        "env.rows = 4",
        "env.camera.fovy=30",
        "env.camera.lookat.1=0.5",
        "env.tasks.push-v3=push it",
        "training.steps=80",
        "training.rates.0=1e-2",
        "training.extra.rank=5",
        "training.parts.1.rank=7",
        "training.tuning.rank=9",
        cls=Bigger,
    )
    assert recipe.seed == 3 and recipe.env.rows == 4
    assert recipe.env.camera.fovy == 30 and recipe.env.camera.lookat == (CameraConfig().lookat[0], 0.5, CameraConfig().lookat[2])
    assert recipe.env.tasks == {"reach-v3": "reach the goal", "push-v3": "push it"}
    assert recipe.training.steps == 80 and recipe.training.rates == (0.01, 0.0001)
    assert recipe.training.extra.rank == 5 and [part.rank for part in recipe.training.parts] == [1, 7]
    assert recipe.training.tuning == Lora(rank=9)


def test_overrides_start_from_the_default_of_the_field(load):
    assert load(GOOD, "training.extra.rank=5", cls=Bigger).training.steps == 50
    assert load(GOOD, "training.tuning={kind: full}", cls=Bigger).training.tuning == Full()
    assert load("name: tiny\n", "env.tasks.reach-v3=reach").env.tasks == {"reach-v3": "reach"}
    assert load(GOOD, "training.rates=[]", "training.extra=", cls=Bigger).training.rates == ()


def test_the_last_override_wins(load):
    assert load(GOOD, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    "override, said",
    [
        ("env.row=3", "unknown setting env.row, did you mean rows?; env has tasks, action_repeat"),
        ("sed=3", "unknown setting sed, did you mean seed?; the recipe has name, seed, device, out, env, ingest"),
        ("training.tuning.rnk=3", "unknown setting training.tuning.rnk, did you mean rank?; training.tuning has kind, rank, rate"),
        ("training.parts.2.rank=3", "training.parts has no item '2', expected a number from 0 to 1"),
        ("training.parts.x=3", "training.parts has no item 'x'"),
        ("env.rows.deep=3", "env.rows is 8, which has no settings inside; set env.rows itself"),
        ("env.rows", "expected setting=value, for example env.rows=8"),
        ("=3", "expected setting=value"),
        ("env..rows=3", "expected setting=value"),
        ("env.rows=[1", "not valid YAML"),
        ("env.rows=many", "env.rows: found 'many', expected a valid integer"),
        ("env.camera.lookat.1=up", "env.camera.lookat.1: found 'up', expected a valid number"),
    ],
)
def test_wrong_overrides(complaint, override, said):
    message = complaint(GOOD, override, cls=Bigger)
    assert message.startswith(f"--set {override!r}") and said in message


@pytest.mark.parametrize(
    "text, said",
    [
        (GOOD.replace("rows", "rwos"), "my.yaml line 5: unknown setting env.rwos, did you mean rows?; env has tasks, "),
        (GOOD.replace("tasks", "taks"), "my.yaml line 3: unknown setting env.taks, did you mean tasks?; "),
        (GOOD.replace("rows: 8", "rows: 0"), "my.yaml line 5: env.rows: found 0, expected greater than or equal to 1"),
        (GOOD.replace("rows: 8", "rows: eight"), "my.yaml line 5: env.rows: found 'eight', expected a valid integer"),
        (GOOD.replace("rows: 8", "camera: 3"), "my.yaml line 5: env.camera: found 3, expected a section with name, lookat, distance"),
        (GOOD.replace("rows: 8", "camera: {lookat: [0, x, 1]}"), "my.yaml line 5: env.camera.lookat.1: found 'x', expected a valid "),
        (GOOD.replace("rows: 8", "renderer: vulkan"), "my.yaml line 5: env.renderer: found 'vulkan', expected 'auto', 'egl', 'osmesa' or 'glfw'"),
        ("name: tiny\nenv:\n  rows: 8\n", "my.yaml line 2: env.tasks is missing; expected instruction of each Meta-World task, as name: instruction"),
        ("name: tiny\n", "my.yaml: env is missing; expected a section with tasks, "),
        ("name: tiny\nenv:\n", "my.yaml line 2: env: found nothing, expected a section with tasks, "),
        ("name: a/b\n" + GOOD[11:], "my.yaml line 1: name: found 'a/b', expected text like "),
        ("name: [1]\n" + GOOD[11:], "my.yaml line 1: name: found [1], expected a valid string"),
        (GOOD.replace("    reach-v3: reach the goal", "    {}"), "my.yaml line 3: env.tasks: found a section, dictionary should "),
        ("- a\n- b\n", "my.yaml: found ['a', 'b'], expected settings such as `name: my-run`"),
        ("", "my.yaml: found nothing, expected settings"),
        ("name: tiny\nenv: {\n", "my.yaml line 3: not valid YAML"),
        (GOOD + "seed: 1\nname: other\n", "my.yaml line 7: not valid YAML ('name' is given twice, first in line 1)"),
        (GOOD + "seed: 1\nout: {a: 1, a: 2}\n", "my.yaml line 7: not valid YAML ('a' is given twice, first in line 7)"),
        ("name: !!python/object/apply:os.system ['true']\n", "my.yaml line 1: not valid YAML (could not determine what"),
        (GOOD + "training: {steps: 3}\n", "my.yaml line 6: training.steps: steps must be even, so that both halves are alike"),
        (GOOD + "training:\n  steps: 0\n", "my.yaml line 6: training: fewer steps than rates"),
        (GOOD + "training:\n  tuning: {kind: full, rte: 1}\n", "my.yaml line 7: unknown setting training.tuning.rte, did you mean rate?"),
        (GOOD + "training:\n  tuning: {kind: none}\n", "my.yaml line 7: training.tuning.kind: found 'none', expected 'lora' or 'full'"),
        (GOOD + "training:\n  parts:\n  - {rank: 1}\n  - {rank: x}\n", "my.yaml line 9: training.parts.1.rank: found 'x', "),
        (GOOD + "training:\n  extra: {rank: x}\n", "my.yaml line 7: training.extra.rank: found 'x', expected a valid integer"),
    ],
)
def test_wrong_recipes(complaint, text, said):
    assert complaint(text, cls=Bigger).startswith(said), complaint(text, cls=Bigger)


def test_the_file_is_blamed_for_what_was_not_overridden(complaint):
    assert complaint(GOOD.replace("rows: 8", "rows: 0"), "env.workers=1").startswith("my.yaml line 5: env.rows")


def test_numbers_and_merges(load):
    text = GOOD + "training: &t\n  rates: [1e-4, 1.5E3, 1e+2, .5e1]\n"
    assert load(text, cls=Bigger).training.rates == (1e-4, 1500.0, 100.0, 5.0)
    merged = recipe_yaml.parse("a: &a {x: 1, y: 1e-4}\nb: {<<: *a, x: 2}\n", "here")
    assert merged["b"] == {"x": 2, "y": 1e-4} and isinstance(merged["b"]["y"], float)


def test_shipped_recipes_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "quickstart.yaml").write_text(GOOD)
    assert load_recipe("quickstart").name == "tiny"
    with pytest.raises(UserError, match=r"^quikstart: no such recipe, .* or one of quickstart, did you mean quickstart\?; "):
        load_recipe("quikstart")
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(tmp_path)


def test_not_text(tmp_path):
    (tmp_path / "my.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="my.yaml line 1: byte 0xff is not UTF-8"):
        load_recipe(tmp_path / "my.yaml")


def test_a_vla_sees_what_the_environment_shows(tmp_path):
    vla = "policy={model: owner/name}"
    assert load_recipe("quickstart", [vla]).policy.cameras == ("front",)
    libero = ["policy.cameras=[image]", "env.cameras=[image, image2]"]
    assert load_recipe("libero-pi0", libero).policy.cameras == ("image",)
    with pytest.raises(UserError, match="policy.cameras names 'top', but the environment has image; choose among those"):
        load_recipe("libero-pi0", ["policy.cameras=[top]"])


def test_post_training_needs_a_policy_of_one_camera(tmp_path):
    """The simulator draws one: told before anything is made, by the whole run as well; fine-tuning and evaluation may have two."""
    recipe = load_recipe("libero-pi0", ["policy.cameras=[image, image2]", "env.cameras=[image, image2]"])
    for stages in (["post-train"], None):
        with pytest.raises(UserError, match="also looks through 'image2', but the simulator draws 'image' alone"):
            run_stages(recipe, tmp_path / "run", stages)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="reflector does not exist|sft does not exist"):
        run_stages(recipe, tmp_path / "run", ["eval-real"])


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    "text, said",
    [
        (GOOD + "1: x\n", "my.yaml line 6: YAML reads the name 1 as a number, expected text; put it in quotes: '1'"),
        (GOOD + "on: x\n", "my.yaml line 6: YAML reads the name on as true or false"),
        (GOOD + "null: x\n", "my.yaml line 6: YAML reads the name null as nothing"),
        (GOOD + "1.5: x\n", "my.yaml line 6: YAML reads the name 1.5 as a number"),
        (GOOD + "2024-01-01: x\n", "my.yaml line 6: unknown setting 2024-01-01"),
        (GOOD + "? [a, b]\n: x\n", "my.yaml line 6: found a list or section as a name"),
        (GOOD + "seed: 2024-01-01\n", "my.yaml line 6: seed: found '2024-01-01', expected a valid integer"),
        (GOOD + "seed: .nan\n", "my.yaml line 6: not valid YAML (found .nan, expected a finite number"),
        (GOOD + "training: {rates: [1e400]}\n", "my.yaml line 6: not valid YAML (found 1e400, expected a finite number"),
        (GOOD + "seed: 99999999999\n", "my.yaml line 6: not valid YAML (found 99999999999, expected a finite number, and a whole one of at most"),
        (GOOD + "seed: " + "9" * 5000 + "\n", "my.yaml line 6: not valid YAML (found '999"),
        (GOOD + "seed: !!int many\n", "my.yaml line 6: not valid YAML (found 'many', expected a number)"),
        (GOOD + "seed: !!bool many\n", "my.yaml: not valid YAML (found 'many', expected true or false)"),
        (GOOD + "seed: !!binary aGk=\n", "my.yaml line 6: not valid YAML (could not determine what 'tag:yaml.org,2002:binary' is)"),
        (GOOD + 'out: "a\\0b"\n', "my.yaml line 6: not valid YAML (a control character in"),
        (GOOD + 'out: "\\ud800"\n', "my.yaml line 6: not valid YAML (a control character in"),
        (GOOD + BOMB, "my.yaml line 6: the aliases (*name) up to here unfold into more than 20,000 values"),
        (GOOD + "seed: &a [*a]\n", "my.yaml line 6: sections inside sections more than 40 deep"),
        (GOOD + "seed: " + "[" * 3000 + "]" * 3000 + "\n", "my.yaml: sections inside sections more than 40 deep"),
        ("name: ..\n" + GOOD[11:], "my.yaml line 1: name: found '..', expected text like"),
        (GOOD.replace("reach-v3", "reech-v3"), "my.yaml line 3: env.tasks: Meta-World has no task 'reech-v3', did you mean reach-v3?"),
    ],
)
def test_yaml_that_is_no_recipe(complaint, text, said):
    assert complaint(text, cls=Bigger).startswith(said), complaint(text, cls=Bigger)


@pytest.mark.parametrize("override", ["seed=.nan", "seed={1: 2}", "env.tasks.2024-01-01=x", "training.parts.²=1", "env={kind: [1]}", "seed=&a [*a]"])
def test_values_that_are_no_setting(complaint, override):
    assert complaint(GOOD, override, cls=Bigger)


def test_not_utf8_and_too_long(tmp_path):
    (tmp_path / "my.yaml").write_bytes(GOOD.encode() + "out: schön\n".encode("latin-1"))
    with pytest.raises(UserError, match="my.yaml line 6: byte 0xf6 is not UTF-8, expected a text file; save it as UTF-8"):
        load_recipe(tmp_path / "my.yaml")
    (tmp_path / "my.yaml").write_text("#" * (2**20 + 1))
    with pytest.raises(UserError, match="more than 1,048,576 bytes"):
        load_recipe(tmp_path / "my.yaml")


def test_an_override_changes_one_use_of_an_alias(load):
    recipe = load(GOOD + "sft: &s {steps: 10}\ntraining: {steps: 4}\npost_train: {filter: *s}\n", "sft.steps=20", cls=Bigger)
    assert (recipe.sft.steps, recipe.post_train.filter.steps) == (20, 10)


def test_tasks_are_meta_worlds():
    metaworld = pytest.importorskip("metaworld.env_dict")
    from worldenv_cli.envs.metaworld_tasks import TASKS

    assert set(TASKS) == set(metaworld.ALL_V3_ENVIRONMENTS)


@pytest.mark.parametrize("override", ["seed=1", "sed=1"])
def test_a_recipe_is_read_without_anything_heavy(override):
    code = f"""
import sys
from worldenv_cli.errors import UserError
from worldenv_cli.recipe import load_recipe
try:
    load_recipe("quickstart", [{override!r}])
except UserError as error:
    print(error)
heavy = {{"torch", "transformers", "diffusers", "datasets", "metaworld", "mujoco", "scipy", "gymnasium", "huggingface_hub"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and ("did you mean seed?" in done.stdout) == (override == "sed=1"), done.stderr


def test_every_setting_is_explained_in_a_phrase():
    from worldenv_cli.recipe_explained import explained

    settings = explained(None)
    assert len(settings) > 250
    for setting in settings:
        first = setting.description[:1]
        assert first.isupper() and len(setting.description.split()) >= 2 and not setting.description.endswith("."), setting
    by_name = {(setting.name, setting.variant): setting for setting in settings}
    assert by_name["post_train.updates.clip", ""][2:4] == ("number, more than 0", "0.2")
    assert by_name["simulate.video.steps", ""].default == "900" and by_name["env.chunk", "libero"].default == "8"
    assert [setting.name for setting in explained("sft.steps")] == ["sft.steps"]
    with pytest.raises(UserError, match="unknown setting sft.stepps, did you mean steps"):
        explained("sft.stepps")
