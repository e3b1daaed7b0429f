"""A run's folder is safe: what is in it belongs together, what is replaced is kept, and a refused command changes nothing.

The artifacts here have the settings and inputs of the miniature's, and a line of text instead of what training would give.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import MINI
from test_artifacts import flip
from test_destination import notes, state
from typer.testing import CliRunner

from worldenv_cli.artifacts import Checkpoint, load_config, write_artifact
from worldenv_cli.cli import app
from worldenv_cli.errors import UserError
from worldenv_cli.recipe import load_recipe
from worldenv_cli.stage_runner import open_run

CHAIN = {
    "demonstrations": (("env", "ingest"), {}),
    "sft": (("policy", "sft"), {"demonstrations": "ingest"}),
    "exploration": (("env", "explore", "calibrate.calibration_share"), {"sft": "sft"}),
}
STAGE = {"demonstrations": "ingest", "sft": "sft", "exploration": "explore"}


def make(folder, *names, changes=(), force=False, text=None, fail=False):
    """Make some artifacts of the chain as the commands do, each with a text that says what it is, or another."""
    run = open_run(load_recipe(MINI, list(changes)), folder, force=force)
    run.check([STAGE[name] for name in names or CHAIN])
    done = []
    for name in names or CHAIN:
        paths, inputs = CHAIN[name]

        def write(place, provenance, name=name):
            if fail:
                raise RuntimeError("out of luck")
            done.append(name)
            write_artifact(place, "policy", {"text": text or name}, None, provenance, f"# {name}")

        run.artifact(name, run.settings(*paths), inputs, write)
    return done


def texts(folder):
    return {name: load_config(folder / name, "policy")["text"] for name in CHAIN if (folder / name).is_dir()}


def kept(folder):
    """{what is kept of what was replaced: its text}."""
    found = (folder / ".replaced").rglob("provenance.json")
    return {path.parent.relative_to(folder / ".replaced").as_posix().partition("/")[2]: load_config(path.parent, "policy")["text"] for path in found}


@pytest.fixture
def run(tmp_path):
    assert make(tmp_path / "run") == list(CHAIN)
    return tmp_path / "run"


def test_what_is_up_to_date_stays(run):
    before = state(run)
    assert make(run) == []
    assert state(run) == before


@pytest.mark.parametrize("change", ["seed=1", "sft.steps=31", "ingest.demos_per_task=3", "policy.width=64", "explore.episodes=6", "name=other"])
@pytest.mark.parametrize("stage", ["run", "sft", "post-train"])
def test_another_recipe_is_refused_and_nothing_is_touched(run, change, stage):
    before = state(run)
    result = CliRunner().invoke(app, [stage, str(MINI), "--set", change, "--out", str(run)])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
    assert "recipe" in result.stderr and change.partition("=")[0] in result.stderr + "name=" * ("recipe 'mini'" in result.stderr)
    assert state(run) == before


def test_settings_that_change_no_result_are_not_another_recipe(run):
    before = state(run)
    assert make(run, changes=["env.workers=2", "env.rows=4", "device=cpu"]) == []
    assert state(run) == before


def test_a_setting_that_nothing_has_used_yet_may_still_change(run):
    make(run, changes=["post_train.rounds=1"])
    assert make(run, changes=["simulator.hidden=64"]) == []


def test_forced_another_recipe_replaces_and_keeps(run):
    (run / "report.html").write_text("of the old ones")
    old = (run / "recipe.yaml").read_text()
    assert make(run, "sft", changes=["sft.steps=31"], force=True, text="new") == ["sft"]
    assert texts(run) == {"demonstrations": "demonstrations", "sft": "new"}
    assert kept(run) == {"sft": "sft", "exploration": "exploration"}
    (aside,) = (run / ".replaced").iterdir()
    assert (aside / "recipe.yaml").read_text() == old and "steps: 31" in (run / "recipe.yaml").read_text()
    assert (aside / "report.html").is_file() and not (run / "report.html").exists()
    assert make(run, changes=["sft.steps=31"]) == ["exploration"]


def test_forced_with_other_settings_of_something_else(run):
    """sft would come out of other settings than the recipe that is recorded."""
    make(run, "demonstrations", changes=["sft.steps=31"], force=True)
    assert texts(run) == {"demonstrations": "demonstrations"} and kept(run).keys() == set(CHAIN)


def test_forced_with_the_same_outcome_leaves_what_was_made_from_it(run):
    assert make(run, "sft", force=True) == ["sft"]
    assert texts(run).keys() == CHAIN.keys() and kept(run) == {"sft": "sft"}
    assert make(run) == []


def test_forced_with_another_outcome_sets_aside_what_was_made_from_it(run):
    make(run, "demonstrations", force=True, text="others")
    assert texts(run) == {"demonstrations": "others"} and kept(run) == {name: name for name in CHAIN}


def test_a_forced_command_that_fails_leaves_everything(run):
    old = (run / "recipe.yaml").read_text()
    with pytest.raises(RuntimeError):
        make(run, "sft", changes=["sft.steps=31"], force=True, fail=True)
    assert texts(run) == {name: name for name in CHAIN} and (run / "recipe.yaml").read_text() == old
    assert make(run) == []


def test_force_does_not_reach_beyond_the_command(run):
    """What the forced stage is made from was made with another recipe: it cannot be mended by this command."""
    before = state(run)
    with pytest.raises(UserError, match="demonstrations was made with another recipe: ingest.demos_per_task was 2, here it is 3; run"):
        make(run, "sft", changes=["ingest.demos_per_task=3"], force=True)
    assert state(run) == before


def test_what_the_user_put_into_an_artifact_is_kept_with_it(run):
    notes(run / "sft")
    notes(run / "mine")
    make(run, "sft", force=True)
    assert len(list((run / ".replaced").glob("*/sft/chapter.tex"))) == 1 and (run / "mine" / "chapter.tex").is_file()


def test_what_is_not_an_artifact_is_not_replaced(run):
    shutil.rmtree(run / "exploration")
    notes(run / "exploration")
    before = state(run)
    with pytest.raises(UserError, match="exploration is in the way of exploration"):
        make(run)
    assert state(run) == before
    make(run, force=True)
    assert len(list((run / ".replaced").glob("*/exploration/chapter.tex"))) == 1


@pytest.mark.parametrize("name", CHAIN)
def test_a_damaged_artifact_is_told_where_it_is_used(run, name):
    flip(run / name / "config.json")
    before = state(run)
    with pytest.raises(UserError, match=rf"run/{name}/config.json does not match its provenance .*`worldenv {STAGE[name]} RECIPE --force`"):
        make(run)
    assert state(run) == before
    make(run, name, force=True)
    assert texts(run) == {name: name for name in CHAIN} and make(run) == []


def test_a_whole_artifact_of_another_run_is_told(run, tmp_path):
    make(tmp_path / "other", changes=["seed=1"])
    shutil.rmtree(run / "sft")
    shutil.copytree(tmp_path / "other" / "sft", run / "sft")
    with pytest.raises(UserError, match="sft was made with another recipe: seed was 1, here it is 0"):
        make(run)


def test_an_artifact_made_from_another_input_is_made_again(run, tmp_path):
    """The same recipe, but not the same demonstrations, as if a kill had come between two renames."""
    make(tmp_path / "other", "demonstrations", text="others")
    shutil.rmtree(run / "demonstrations")
    shutil.copytree(tmp_path / "other" / "demonstrations", run / "demonstrations")
    with pytest.raises(UserError, match="sft was made from another demonstrations than the one that is there; run `worldenv sft`"):
        make(run, "exploration")
    assert make(run) == ["sft"] and kept(run) == {"sft": "sft"}  # and out comes the same policy
    assert make(run) == []


def test_an_ancestor_that_is_gone_is_told(run):
    shutil.rmtree(run / "demonstrations")
    with pytest.raises(UserError, match="demonstrations does not exist: exploration needs it; run `worldenv ingest`"):
        make(run, "exploration")


def test_a_refused_command_makes_no_folder(tmp_path):
    for stage in ("sft", "post-train", "eval", "bench"):
        result = CliRunner().invoke(app, [stage, str(MINI), "--out", str(tmp_path / "deep" / "run")])
        assert result.exit_code == 2 and "does not exist" in result.stderr, result.output
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_that_it_would_be_refused(run, capsys):
    before = state(run)
    result = CliRunner().invoke(app, ["sft", str(MINI), "--set", "sft.steps=31", "--out", str(run), "--dry-run"])
    assert result.exit_code == 0 and "this would be refused" in result.output and "sft: would be made" in result.output
    assert state(run) == before


# What is damaged of the bookkeeping, and where a run may be cut off


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"sft": 3, "exploration": {"seconds": "long"}}', "\0" * 20])
def test_damaged_times_are_left_out(run, damage):
    (run / "timing.json").write_text(damage)
    assert make(run) == [] and open_run(load_recipe(MINI), run).times == {}
    make(run, "exploration", force=True)
    assert json.loads((run / "timing.json").read_text()).keys() == {"exploration"}


@pytest.mark.parametrize("damage", ["", "{", '{"fingerprint": "of other settings"}', None])
def test_a_workshop_that_is_damaged_or_of_other_settings_is_kept_aside(tmp_path, capsys, damage):
    with pytest.raises(RuntimeError):
        make(tmp_path / "run", "demonstrations", fail=True)
    workshop = tmp_path / "run" / ".unfinished" / "demonstrations"
    Checkpoint(workshop / "model").save(7, {}, {})
    (workshop / "provenance.json").unlink() if damage is None else (workshop / "provenance.json").write_text(damage)
    make(tmp_path / "run", "demonstrations")
    assert len(list((tmp_path / "run").glob(".replaced/*/.unfinished/demonstrations/model/step_000007"))) == 1
    assert "demonstrations: what was begun" in capsys.readouterr().out


@pytest.mark.parametrize("force", [False, True])
def test_what_is_unfinished_goes_on_and_with_force_begins_anew(tmp_path, capsys, force):
    with pytest.raises(RuntimeError):
        make(tmp_path / "run", "demonstrations", fail=True)
    Checkpoint(tmp_path / "run" / ".unfinished" / "demonstrations" / "model").save(7, {}, {})
    with pytest.raises(RuntimeError):
        make(tmp_path / "run", "demonstrations", force=force, fail=True)
    begun = [path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("step_000007")]
    assert begun == [".replaced" if force else ".unfinished"]
    assert ("is begun anew with --force" in capsys.readouterr().out) == force


def test_a_damaged_recipe_of_a_run_is_kept_and_written_anew(run):
    (run / "recipe.yaml").write_text("name: [")
    make(run, "exploration", force=True)
    assert load_recipe(run / "recipe.yaml") == load_recipe(MINI)
    assert [path.read_text() for path in run.glob(".replaced/*/recipe.yaml")] == ["name: ["]


@pytest.mark.parametrize("number", range(20))
def test_cut_off_at_any_change_of_the_folder_it_goes_on_and_nothing_is_lost(run, monkeypatch, number):
    """The process dies at the n-th rename, new folder or deletion of a forced replacement."""
    (run / "report.html").write_text("of the old ones")
    calls = iter(range(number + 1))

    class Dead(BaseException):
        pass

    def dying(function):
        def call(*arguments, **options):
            if next(calls, None) is None:
                raise Dead  # and so does everything after it: nothing is tidied up
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "mkdir", "rmdir", "unlink"):
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            make(run, "sft", changes=["sft.steps=31"], force=True, text="new")
        except Dead:
            pass
    for _ in range(2):
        try:
            make(run, changes=["sft.steps=31"], text="new")
        except UserError as error:  # the old ones are still there
            assert "was made with another recipe: sft.steps was 30" in str(error)
            make(run, "sft", changes=["sft.steps=31"], force=True, text="new")
    assert texts(run) == {"demonstrations": "demonstrations", "sft": "new", "exploration": "new"}
    assert "steps: 31" in (run / "recipe.yaml").read_text()
    whole = [path.parent for path in run.glob(".replaced/**/provenance.json") if ".unfinished" not in path.parts]
    old = {folder.name for folder in whole if load_config(folder, "policy")["text"] != "new"}
    assert old == {"sft", "exploration"} and len(list(run.glob(".replaced/*/report.html"))) == 1


def test_a_readme_of_the_users_is_kept(run):
    (run / "README.md").write_text("my notes")
    opened = open_run(load_recipe(MINI), run)
    opened.keep_own_readme()
    assert [path.read_text() for path in run.glob(".replaced/*/README.md")] == ["my notes"]
    (run / "README.md").write_text("---\nlibrary_name: worldenv\n---\n")
    opened.keep_own_readme()
    assert (run / "README.md").is_file()


def test_a_run_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("mine")
    result = CliRunner().invoke(app, ["run", str(MINI), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2 and "is a file" in result.stderr and Path(tmp_path / "run").read_text() == "mine"
