"""What became of an episode: read, told or unknown, and who may see which."""

import json

import numpy as np
import pytest
from random_dataset import make_episode
from recorded import lerobot_folder
from typer.testing import CliRunner

from worldenv_cli.cli import app
from worldenv_cli.data.dataset import read_dataset, read_description
from worldenv_cli.data.outcomes import flags, known, rewarded, so_far
from worldenv_cli.data.sources import SourceConfig, open_source
from worldenv_cli.errors import UserError
from worldenv_cli.post_train.filtered import successes


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ingested(out, *arguments):
    result = run("ingest", *arguments, "--out", out)
    assert result.exit_code == 0, result.output
    return read_dataset(out), result.output


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.output
    return result.stderr


def outcomes(path, **config):
    source = open_source(path, SourceConfig(**config))
    return [source.read(listed, ()).outcome for listed in source.episodes]


def test_a_flag_belongs_to_the_frame_after_its_action_and_the_last_one_to_the_last_frame():
    assert so_far(np.array([0, 1, 0], bool), 4).tolist() == [False, False, True, True]
    assert so_far(np.array([0, 0, 1], bool), 3).tolist() == [False, False, True]  # the row that is dropped
    assert so_far(np.array([0, 0, 0], bool), 3).tolist() == [False] * 3


@pytest.mark.parametrize("values", [["yes", "no"], [0.0, np.nan], [0.0, 0.5], [[0, 1], [1, 1]], [None, True]])
def test_what_is_no_flag_is_refused(values):
    with pytest.raises(UserError, match="episode 3, next.success: "):
        flags("episode 3", "next.success", np.array(values))


@pytest.mark.parametrize("values", [["much", "little"], [0.0, np.nan], [0.0, np.inf], [[0, 1], [1, 1]]])
def test_what_is_no_reward_is_refused(values):
    with pytest.raises(UserError, match="episode 3, next.reward: "):
        rewarded("episode 3", "next.reward", np.array(values))


def last_only(steps):
    return np.arange(steps) == steps - 1


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"next.success": last_only}, "success"),
        ({"next.success": lambda n: np.zeros(n, bool)}, "failure"),
        ({"next.success": lambda n: last_only(n)[:, None].tolist()}, "success"),
        ({"next.success": lambda n: np.zeros(n, bool), "next.reward": last_only}, "failure"),
        ({"next.reward": lambda n: last_only(n) * 0.5}, "success"),
        ({"next.reward": lambda n: np.full(n, -0.1)}, "failure"),
        ({}, "unknown"),
    ],
)
def test_lerobot_says_it_by_success_then_by_reward_or_not_at_all(tmp_path, columns, expected):
    assert outcomes(lerobot_folder(tmp_path / "set", **columns)) == [expected] * 2


@pytest.mark.parametrize("column", [lambda n: ["yes"] * n, lambda n: np.full(n, np.nan), lambda n: np.full(n, 2)])
def test_flags_that_are_none_are_errors_of_the_episode(tmp_path, column):
    message = refused("ingest", lerobot_folder(tmp_path / "set", **{"next.success": column}), "--out", tmp_path / "out")
    assert "episode 0, next.success" in message and "--success" in message


def test_unknown_outcomes_are_said_and_stay_unknown(tmp_path):
    episodes, said = ingested(tmp_path / "out", lerobot_folder(tmp_path / "set"))
    assert "set: 2 episodes: 2 unknown (unknown: neither next.success nor next.reward is recorded)" in said
    assert [episode.outcome for episode in episodes] == ["unknown"] * 2
    assert read_description(tmp_path / "out")["outcome"][0]["episodes"] == "2 episodes: 2 unknown"
    assert "2 unknown" in (tmp_path / "out/README.md").read_text() and "unknown" in run("inspect", tmp_path / "out").output
    again, said = ingested(tmp_path / "again", tmp_path / "out", "--outcome", "success")
    assert [episode.outcome for episode in again] == ["success"] * 2 and "2 successes" in said and "by --outcome" in said


def test_outcome_is_for_those_that_are_unknown_only(tmp_path):
    path = lerobot_folder(tmp_path / "set", **{"next.success": lambda n: np.zeros(n, bool)})
    assert outcomes(path, outcome="success") == ["failure"] * 2


def test_success_can_be_a_column_or_a_file(tmp_path):
    path = lerobot_folder(tmp_path / "set", done_well=lambda n: np.arange(n) >= 2)
    assert outcomes(path, success="done_well") == ["success"] * 2
    assert "no column 'mood'" in refused("ingest", path, "--out", tmp_path / "x", "--success", "mood")
    labels = tmp_path / "labels.csv"
    labels.write_text("episode,success,frame\n0,1,3\nepisode 1,no,\n")
    episodes, said = ingested(tmp_path / "out", path, "--success", labels)
    assert episodes[0].success.tolist() == [False] * 3 + [True] * 3 and not episodes[1].success.any()
    assert "1 success, 1 failure" in said and str(tmp_path) not in (tmp_path / "out/meta/worldenv.json").read_text()
    labels.write_text("episode,success,time\n0,1,0.4\n")
    changed, _ = ingested(tmp_path / "out", path, "--success", labels)
    assert changed[0].success.tolist() == [False] * 4 + [True] * 2 and changed[1].outcome == "unknown"
    (tmp_path / "labels.json").write_text(json.dumps({"0": True, "1": False}))
    assert outcomes(path, success=str(tmp_path / "labels.json")) == ["success", "failure"]


@pytest.mark.parametrize(
    "text, told",
    [
        ("episode,success\n7,1\n", "'7' is not in the source"),
        ("episode,success\n0,perhaps\n", "'perhaps', expected 1 or 0"),
        ("episode,success\n0,1\n0,0\n", "second time"),
        ("number,good\n0,1\n", "expected an episode and a success"),
        ("episode,success,frame\n0,1,40\n", "success at frame 40, expected 1 to 5"),
    ],
)
def test_mistakes_in_labels_are_told(tmp_path, text, told):
    (tmp_path / "labels.csv").write_text(text)
    message = refused("ingest", lerobot_folder(tmp_path / "set"), "--out", tmp_path / "out", "--success", tmp_path / "labels.csv")
    assert told in message and not (tmp_path / "out").exists()


def test_unknown_episodes_reach_neither_cloning_nor_reflector_nor_gate():
    good, bad, dark = make_episode(0), make_episode(1), make_episode(2)
    good.success, bad.success, dark.success = np.arange(6) > 3, np.zeros(6, bool), np.zeros(6, bool)
    dark.info["outcome"] = "unknown"
    assert successes([good, bad, dark]) == [good] and known([good, bad, dark]) == [good, bad]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffepisode,success\r\n0,1\r\n1,0\r\n",
        " Episode , Success \n0 , True \n\nepisode 1 , FALSE \n",
        'success,episode,note\n1.0,0,\n0.0,1,"dropped,\nthen left"\n',
    ],
)
def test_labels_of_other_programs_are_read(tmp_path, text):
    """A byte order mark, Windows' line ends, spaces, other cases and orders, numbers with a point, notes in quotes."""
    labels = tmp_path / "labels.csv"
    labels.write_bytes(text.encode())
    assert outcomes(lerobot_folder(tmp_path / "set"), success=str(labels)) == ["success", "failure"]


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("a.csv", "id,success\n0,1\n", "the heading is id, success"),
        ("a.csv", "episode;success\n0;1\n", "the heading is episode;success"),
        ("a.csv", "episode,success\n", "no row with an episode"),
        ("a.csv", "", "no row with an episode"),
        ("a.json", "{}", "no row with an episode"),
        ("a.json", '{"0": true, "0": false}', "for the second time"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.json", "3", "cannot be read"),
    ],
)
def test_files_of_labels_that_say_nothing_or_twice_are_told(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    assert told in refused("ingest", lerobot_folder(tmp_path / "set"), "--out", tmp_path / "out", "--success", tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_a_label_of_an_episode_that_is_left_out_is_no_mistake(tmp_path):
    path = lerobot_folder(tmp_path / "set", lengths=(6, 4, 5))
    (path / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "pick it"}\n')
    rows = (path / "meta/episodes.jsonl").read_text().splitlines()
    (path / "meta/episodes.jsonl").write_text("\n".join([*rows[:2], rows[2].replace('["pick it"]', "[]")]))
    (path / "data/chunk-000/episode_000002.parquet").unlink()
    (tmp_path / "labels.csv").write_text("episode,success\n0,1\n1,1\n2,0\n")
    episodes, said = ingested(tmp_path / "out", path, "--success", tmp_path / "labels.csv", "--skip-bad")
    assert len(episodes) == 2 and "episode '2' is not among those that are taken" in said and "left out: set: episode 2" in said
