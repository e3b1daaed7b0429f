"""Nothing of the user's is replaced, whatever --out says (worldenv_cli/destination.py)."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import MINI
from PIL import Image
from recorded import libero_file, robomimic_file
from typer.testing import CliRunner

from worldenv_cli.artifacts import make_provenance, mark, save_artifact
from worldenv_cli.cli import app
from worldenv_cli.destination import check_destination
from worldenv_cli.errors import UserError
from worldenv_cli.evaluation.video import contact_sheet


def artifact(folder, kind="dataset", **of):
    save_artifact(folder, kind, {"episodes": 1}, None, make_provenance({}, {}, 0) | of, "# It")
    return folder


def state(folder):
    """Everything under a folder: names, kinds, contents and times of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (inside, path.lstat().st_mtime_ns)
    return found


def notes(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chapter.tex").write_text("three years of work")
    return folder


def file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    return path


def link(path, target):
    path.symlink_to(target)
    return path


def hand_written(folder):
    """A user's own recipe and recordings, in a folder that no command wrote."""
    notes(folder / "demonstrations")
    (folder / "recipe.yaml").write_text(MINI.read_text())
    return folder


def with_notes(folder):
    notes(folder)
    return folder


THEIRS = {
    "their files": lambda p: notes(p / "thesis"),
    "a file": lambda p: file(p / "thesis"),
    "below a file": lambda p: file(p / "thesis") / "new",
    "a link to their files": lambda p: link(p / "short", notes(p / "thesis")),
    "a link to a file": lambda p: link(p / "short", file(p / "thesis")),
    "their recipe and recordings": lambda p: hand_written(p / "thesis"),
    "their config.json": lambda p: file(p / "thesis" / "config.json").parent,
    "a config.json of other software": lambda p: (file(p / "t" / "config.json").write_text('{"kind": "dataset"}'), p / "t")[1],
    "a policy": lambda p: artifact(p / "policy", "policy"),
    "inside a policy": lambda p: artifact(p / "policy", "policy") / "new",
    "hidden files": lambda p: file(p / "repository" / ".git" / "HEAD").parent.parent,
    "the root": lambda p: Path("/"),
    "a pipe": lambda p: (os.mkfifo(p / "pipe"), p / "pipe")[1],
}


@pytest.mark.parametrize("kind", ["dataset", "run", "pool"])
@pytest.mark.parametrize("place", THEIRS)
def test_what_is_not_of_this_project_is_refused(tmp_path, kind, place):
    out = THEIRS[place](tmp_path)
    before = state(tmp_path)
    with pytest.raises(UserError) as caught:
        check_destination(out, kind)
    assert str(out) in str(caught.value) and "\n" not in str(caught.value)
    assert state(tmp_path) == before


@pytest.mark.parametrize("kind", ["dataset", "run", "pool"])
def test_a_new_place_and_an_empty_one_are_taken(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    (tmp_path / "finder").mkdir()
    (tmp_path / "finder" / ".DS_Store").write_text("")
    for place in ("new", "deep/er/new", "empty", "empty/new", "finder"):
        check_destination(tmp_path / place, kind)
    check_destination(link(tmp_path / "nowhere", tmp_path / "later"), kind)
    assert not (tmp_path / "new").exists() and not (tmp_path / "deep").exists()


def test_an_artifact_of_the_same_kind_is_replaced_unless_something_else_lies_in_it(tmp_path):
    out = artifact(tmp_path / "set")
    check_destination(out, "dataset")
    file(out / "notes" / "mine.txt")
    with pytest.raises(UserError, match="also holds notes/mine.txt"):
        check_destination(out, "dataset")
    with pytest.raises(UserError, match="is a dataset of worldenv"):
        check_destination(out, "pool")


def test_a_dataset_of_a_run_is_not_replaced_by_another(tmp_path):
    with pytest.raises(UserError, match="belongs to a run"):
        check_destination(artifact(tmp_path / "run" / "demonstrations", artifact="demonstrations"), "dataset")


def test_a_run_and_a_pool_are_known_by_their_mark(tmp_path):
    for kind, other in (("run", "pool"), ("pool", "run")):
        (tmp_path / kind).mkdir()
        mark(tmp_path / kind, kind)
        file(tmp_path / kind / "my-notes.md")
        check_destination(tmp_path / kind, kind)
        for wrong in (other, "dataset"):
            with pytest.raises(UserError, match=f"is a {kind} of worldenv"):
                check_destination(tmp_path / kind, wrong)


def test_a_folder_of_nothing_but_artifacts_becomes_a_run(tmp_path):
    artifact(tmp_path / "run" / "demonstrations")
    check_destination(tmp_path / "run", "run")
    file(tmp_path / "run" / "notes.txt")
    with pytest.raises(UserError, match="no `worldenv` command wrote"):
        check_destination(tmp_path / "run", "run")


@pytest.mark.parametrize("out", ["source", "source/deep/new", ".", "source/..", "link"])
def test_a_source_is_never_inside_what_is_written_nor_around_it(tmp_path, out):
    artifact(tmp_path / "source")
    link(tmp_path / "link", tmp_path / "source")
    for kind in ("dataset", "run", "pool"):
        with pytest.raises(UserError, match="which is read"):
            check_destination(tmp_path / out, kind, [tmp_path / "source"])
        with pytest.raises(UserError, match="which is read"):
            check_destination(tmp_path / "source", kind, [tmp_path / "link"])


def test_a_name_on_the_hub_is_no_place_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_destination(Path("."), "run", [Path("owner/name")])


def test_the_current_folder_and_those_above_it_are_not_replaced(tmp_path, monkeypatch):
    inside = tmp_path / "set" / "deep"
    artifact(tmp_path / "set")
    inside.mkdir()
    monkeypatch.chdir(inside)
    for out in (".", "..", "../..", "../../set"):
        with pytest.raises(UserError, match="in which you are"):
            check_destination(Path(out), "dataset")


@pytest.mark.parametrize("kind", ["dataset", "run", "pool"])
def test_the_home_folder(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="your home folder"):
        check_destination(tmp_path, kind)
    with pytest.raises(UserError, match="your home folder"):
        check_destination(link(tmp_path / "link", tmp_path), kind)


def test_a_read_only_place_is_told_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # the superuser may write anywhere
    for kind in ("dataset", "run", "pool", "file"):
        with pytest.raises(UserError, match=f"{tmp_path} is read-only"):
            check_destination(tmp_path / "new", kind)


def test_a_sheet_replaces_a_sheet_and_no_other_file(tmp_path):
    sheet = contact_sheet(tmp_path / "sheet.png", [("one", np.zeros((3, 16, 16, 3), np.uint8))])
    check_destination(sheet, "file")
    check_destination(tmp_path / "new.png", "file")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    for other in (tmp_path / "photo.png", file(tmp_path / "text.png"), tmp_path, robomimic_file(tmp_path / "image.hdf5")):
        with pytest.raises(UserError, match="name a new file"):
            check_destination(other, "file")


# The commands


def refused(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.output
    return result.stderr


@pytest.mark.parametrize("place", ["thesis", "data", "data/image.hdf5", "."])
def test_ingest_of_a_file(tmp_path, place):
    notes(tmp_path / "thesis")
    source = robomimic_file(file(tmp_path / "data" / "x").with_name("image.hdf5"))
    before = state(tmp_path)
    for extra in ((), ("--force",)):
        refused("ingest", source, "--instruction", "lift", "--out", tmp_path / place, *extra)
    assert state(tmp_path) == before


def test_ingest_from_inside_a_folder(tmp_path, monkeypatch):
    source = libero_file(tmp_path / "open_it_demo.hdf5")
    inside = notes(tmp_path / "work" / "here")
    monkeypatch.chdir(inside)
    before = state(tmp_path)
    for out in ("..", ".", "../../work"):
        refused("ingest", source, "--out", out)
    assert state(tmp_path) == before


@pytest.mark.parametrize("command", ["ingest", "run", "sft", "eval", "bench"])
def test_a_recipe_beside_the_users_things(tmp_path, monkeypatch, command):
    hand_written(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    before = state(tmp_path)
    for extra in ((), ("--force",), ("--dry-run",)):
        assert "demonstrations, recipe.yaml" in refused(command, "recipe.yaml", "--out", ".", *extra)
    assert state(tmp_path) == before


def test_pool_beside_the_users_things(tmp_path, monkeypatch):
    file(tmp_path / "work" / "README.md")
    monkeypatch.chdir(tmp_path / "work")
    before = state(tmp_path)
    refused("pool", tmp_path, "--out", ".")
    refused("pool", "../no-run", "--out", "new")
    assert state(tmp_path) == before


def test_inspect_onto_the_users_picture(tmp_path):
    source = robomimic_file(tmp_path / "image.hdf5")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    before = state(tmp_path)
    for sheet in ("photo.png", "image.hdf5", "."):
        refused("inspect", source, "--sheet", tmp_path / sheet)
    assert state(tmp_path) == before


@pytest.mark.parametrize("out", ["~", "~/runs", "~someone/runs"])
def test_a_home_folder_that_no_shell_has_filled_in(tmp_path, monkeypatch, out):
    """A folder called ~ would look like success, and cleaning it up would delete the home folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="begins with ~, which your shell did not replace"):
        check_destination(Path(out), "run")
    assert not list(tmp_path.iterdir())
