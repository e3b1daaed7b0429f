"""LeRobotDatasets as people have them: what is declared and not there, there and not declared, or of no interest."""

import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from random_dataset import make_episode, write
from recorded import film, frames, lerobot_folder, numbers, png
from typer.testing import CliRunner

from worldenv_cli.cli import app
from worldenv_cli.data.dataset import read_dataset, read_description
from worldenv_cli.data.sources import SourceConfig, open_source
from worldenv_cli.errors import UserError

FRONT = "observation.images.front"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ingested(out, *arguments):
    result = run("ingest", *arguments, "--out", out)
    assert result.exit_code == 0, result.output
    return sorted(read_dataset(out), key=lambda episode: episode.info["from"])  # not by task


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.output
    return result.stderr


def edit(path, change):
    pq.write_table(change(pq.read_table(path)), path)


def edit_info(folder, **changed):
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps(info | changed))
    return folder


def with_feature(folder, name, **feature):
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    return edit_info(folder, features=features | {name: features[FRONT] | feature})


@pytest.fixture
def version_3(tmp_path):
    """Three episodes in two files, one camera, two instructions."""
    episodes = [make_episode(seed, 5 + seed, cameras=(("front", 16, 16),), task=task) for seed, task in enumerate(("pull", "push", "pull"))]
    folder = write(tmp_path / "three", episodes, description={})
    (folder / "meta/worldenv.json").unlink()
    table = pq.read_table(folder / "data/chunk-000/file-000.parquet")
    cut = table["episode_index"].to_pylist().index(2)
    pq.write_table(table.slice(0, cut), folder / "data/chunk-000/file-000.parquet")
    pq.write_table(table.slice(cut), folder / "data/chunk-000/file-001.parquet")
    return folder, episodes


EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def test_rows_are_found_where_they_say_that_they_are(version_3, tmp_path):
    """meta/episodes still says that all of them lie in the first file, as LeRobot's converter left it."""
    folder, episodes = version_3
    for found, wanted in zip(ingested(tmp_path / "out", folder), episodes, strict=True):
        np.testing.assert_array_equal(found.states, wanted.states[: len(found.states)])
        np.testing.assert_array_equal(found.frames["front"], wanted.frames["front"][: len(found.states)])
    (folder / "data/chunk-000/file-000.parquet").unlink()
    assert "episode 0: " in refused("ingest", folder, "--out", tmp_path / "x")
    assert [e.info["from"] for e in ingested(tmp_path / "rest", folder, "--skip-bad")] == ["episode 2"]


@pytest.mark.parametrize("tasks", [None, [["pull", "valid"], ["push", "valid"], ["pull", "valid"]]])
def test_instructions_are_what_the_rows_say(version_3, tmp_path, tasks):
    folder, episodes = version_3
    edit(folder / EPISODES, lambda table: table.drop_columns("tasks") if tasks is None else table.set_column(1, "tasks", pa.array(tasks)))
    assert [e.instruction for e in ingested(tmp_path / "out", folder)] == ["pull", "push", "pull"]


def test_rows_out_of_order_are_put_in_order_and_lost_ones_are_told(version_3, tmp_path):
    folder, episodes = version_3
    path = folder / "data/chunk-000/file-000.parquet"
    edit(path, lambda table: pa.concat_tables([table.slice(4), table.slice(0, 4)]))
    found = ingested(tmp_path / "out", folder)[0]
    np.testing.assert_array_equal(found.states, episodes[0].states)
    np.testing.assert_array_equal(found.frames["front"], episodes[0].frames["front"])
    edit(path, lambda table: table.slice(1))
    assert "frame_index goes from 3 to 5" in refused("ingest", folder, "--out", tmp_path / "x")


@pytest.mark.parametrize("fps, expected", [(20.0, 20), (29.97, 29.97)])
def test_rates_need_not_be_whole(tmp_path, fps, expected):
    folder = edit_info(lerobot_folder(tmp_path / "set", video=True), fps=fps)
    (episode, _), info = ingested(tmp_path / "out", folder, "--video"), json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["fps"] == expected and type(info["fps"]) is type(expected) and len(episode.actions) == 5
    assert len(ingested(tmp_path / "again", tmp_path / "out")) == 2


def test_an_unknown_rate_is_asked_for(tmp_path):
    folder = edit_info(lerobot_folder(tmp_path / "set"), fps=None)
    assert "--control-hz" in refused("ingest", folder, "--out", tmp_path / "x")
    ingested(tmp_path / "out", folder, "--control-hz", 12.5)
    assert read_description(tmp_path / "out")["control_hz"] == 12.5


def test_facts_are_never_made_up(tmp_path):
    ingested(tmp_path / "out", edit_info(lerobot_folder(tmp_path / "set"), robot_type=None))
    description = read_description(tmp_path / "out")
    assert description["robot"] is None and description["cameras"]["front"]["orientation"] is None and description["action"]["gripper"] is None


# Cameras


def test_only_cameras_that_are_asked_for_are_read(tmp_path):
    """Beside the one that is wanted: a depth map, one without files, one whose pictures are broken, one of a strange shape."""
    folder = lerobot_folder(tmp_path / "set", **{"observation.images.broken": lambda n: [{"bytes": b"x", "path": None}] * n})
    for name, feature in {
        "broken": {},
        "depth": {"shape": [16, 16], "info": {"is_depth_map": True}},
        "absent": {"dtype": "video"},
        "strange": {"shape": [16, 16, 7]},
    }.items():
        with_feature(folder, f"observation.images.{name}", **feature)
    shown = ingested(tmp_path / "out", folder, "--cameras", "front=eye")[0].frames
    np.testing.assert_array_equal(shown["eye"], frames(0, 6))
    for name, reason in {"depth": "depth", "absent": "videos are missing", "strange": "shape"}.items():
        assert reason in refused("ingest", folder, "--out", tmp_path / "x", "--cameras", name)
    message = refused("ingest", folder, "--out", tmp_path / "x")
    assert "leave it out: --cameras front" in message
    result = run("inspect", folder)
    assert result.exit_code == 0 and "cannot be taken: a depth map" in result.output and "not a whole PNG" in " ".join(result.output.split())


def picture(mode):
    shown = frames(0, 1)[0]
    if mode == "I;16":
        return Image.fromarray(shown[..., 0].astype(np.uint16) * 200)
    image = Image.fromarray(shown)
    return image.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else image.convert(mode)


def encoded(image):
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "I;16"])
def test_pictures_of_other_modes(tmp_path, mode):
    cell = {"bytes": encoded(picture(mode)), "path": None}
    folder = lerobot_folder(tmp_path / "set", **{FRONT: lambda n: [cell] * n})
    if mode == "I;16":
        message = refused("ingest", folder, "--out", tmp_path / "x")
        assert "16-bit" in message and "--cameras" in message and "download" not in message
        return
    wanted = np.asarray(picture(mode).convert("RGB"))
    np.testing.assert_array_equal(ingested(tmp_path / "out", folder)[0].frames["front"][0], wanted)
    if mode == "RGBA":
        with_feature(folder, FRONT, shape=[16, 16, 4])
        np.testing.assert_array_equal(ingested(tmp_path / "four", folder)[0].frames["front"][0], wanted)


def test_pictures_may_lie_in_files_of_the_dataset_and_nowhere_else(tmp_path):
    def cells(name):
        return lambda n: [{"bytes": None, "path": name.format(k)} for k in range(n)]

    folder = lerobot_folder(tmp_path / "set", **{FRONT: cells("images/{:02d}.png")})
    (folder / "images").mkdir()
    for k, shown in enumerate(frames(0, 6)):
        (folder / f"images/{k:02d}.png").write_bytes(png(shown))
    np.testing.assert_array_equal(ingested(tmp_path / "out", folder)[0].frames["front"], frames(0, 6))
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(frames(9, 1)[0]))
    (folder / "images/00.png").unlink()
    (folder / "images/00.png").symlink_to(secret)
    assert "leads out of it" in refused("ingest", folder, "--out", tmp_path / "x")
    for number, name in enumerate((str(secret), "../secret.png")):
        other = lerobot_folder(tmp_path / f"set{number}", **{FRONT: cells(name)})
        assert "do not trust this dataset" in refused("ingest", other, "--out", tmp_path / "x")


def test_a_table_behind_a_link_out_of_the_dataset_is_not_read(tmp_path):
    folder = lerobot_folder(tmp_path / "set")
    path = folder / "data/chunk-000/episode_000000.parquet"
    path.rename(tmp_path / "elsewhere.parquet")
    path.symlink_to(tmp_path / "elsewhere.parquet")
    assert "leads out of it" in refused("ingest", folder, "--out", tmp_path / "x")


# Videos


def shades(count):
    return np.stack([np.full((16, 16, 3), 20 + 25 * k, np.uint8) for k in range(count)])


def filmed(path, clock, count):
    folder = lerobot_folder(path, lengths=(len(clock),), video=True, timestamp=lambda n: np.float32(clock))
    film(folder / f"videos/chunk-000/{FRONT}/episode_000000.mp4", shades(count))
    return folder


def shade(shown):
    return np.round((shown.reshape(len(shown), -1).mean(1) - 20) / 25).astype(int).tolist()


@pytest.mark.parametrize("clock", [[0, 0.1, 0.2, 0.24, 0.4, 0.5], [0, 0.1, 0.3, 0.4, 0.5, 0.6], [1000.0, 1000.1, 1000.2, 1000.3, 1000.4, 1000.5]])
def test_the_kth_row_gets_the_kth_frame(tmp_path, clock):
    assert shade(ingested(tmp_path / "out", filmed(tmp_path / "set", clock, 6))[0].frames["front"]) == list(range(6))


def test_other_frames_are_never_taken_in_silence(tmp_path):
    even, late = np.arange(6) / 10, [0, 0.1, 0.2, 0.24, 0.4, 0.5]
    assert shade(ingested(tmp_path / "out", filmed(tmp_path / "more", even, 8))[0].frames["front"]) == list(range(6))
    message = refused("ingest", filmed(tmp_path / "late", late, 8), "--out", tmp_path / "x")
    assert "8 frames for 6 rows" in message and "timestamp 0.240 in row 3" in message and "download" not in message
    assert "5 frames" in refused("ingest", filmed(tmp_path / "short", even, 5), "--out", tmp_path / "x")


def test_frames_of_uneven_times_keep_their_order(tmp_path):
    """One file, two episodes, a pause of five seconds before the second: its frames are not where the average rate would put them."""
    import av

    from worldenv_cli.data.pictures import video_frames

    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "5", "g": "2"})
        stream.height = stream.width = 16
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(shades(9)):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts = number + 50 * (number >= 3)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert shade(video_frames(tmp_path / "film.mp4", np.arange(4, 9), 16, 16)) == [4, 5, 6, 7, 8]
    assert shade(video_frames(tmp_path / "film.mp4", np.array([1, 3, 8]), 16, 16)) == [1, 3, 8]


def test_sums_of_rounded_durations_may_drift(tmp_path):
    """from_timestamp of later episodes is off by more than a frame; the order is not."""
    episodes = [make_episode(seed, 5, cameras=(("front", 16, 16),)) for seed in range(4)]
    for number, episode in enumerate(episodes):
        episode.frames["front"] = np.stack([np.full((16, 16, 3), 10 * (6 * number + k), np.uint8) for k in range(6)])
    folder = write(tmp_path / "set", episodes, video=True)
    name = f"videos/{FRONT}/from_timestamp"

    def drift(table):
        return table.set_column(table.schema.get_field_index(name), name, pa.array(np.array(table[name]) * 1.08))

    edit(folder / EPISODES, drift)
    for found, wanted in zip(read_dataset(folder), episodes, strict=True):
        assert np.abs(found.frames["front"].astype(int) - wanted.frames["front"]).mean() < 3


# What cannot be taken


def test_episodes_of_several_instructions_have_both_ways_out(version_3, tmp_path):
    folder, _ = version_3
    path = folder / "data/chunk-000/file-000.parquet"

    def mixed(table):
        return table.set_column(table.schema.get_field_index("task_index"), "task_index", pa.array([0, 0, 0, 1, 1, 1] + [1] * (len(table) - 6)))

    edit(path, mixed)
    edit(folder / EPISODES, lambda table: table.set_column(1, "tasks", pa.array([["pull", "push"], ["push"], ["pull"]])))
    message = refused("ingest", folder, "--out", tmp_path / "x")
    assert "episode 0: 2 instructions" in message and "--instruction" in message and "--skip-bad" in message
    assert [e.instruction for e in ingested(tmp_path / "a", folder, "--skip-bad")] == ["push", "pull"]
    assert [e.instruction for e in ingested(tmp_path / "b", folder, "--tasks", "push")] == ["push"]
    (folder / "meta/tasks.parquet").unlink()  # of no interest then
    assert [e.instruction for e in ingested(tmp_path / "c", folder, "--instruction", "go")] == ["go"] * 3


def test_skip_bad_takes_the_rest_and_lists_what_is_left_under_the_sources_names(tmp_path):
    good, bad, gone = (lerobot_folder(tmp_path / name) for name in ("good", "bad", "gone"))
    (bad / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1")
    (gone / "meta/info.json").write_text("{")
    edit(
        good / "data/chunk-000/episode_000001.parquet",
        lambda table: table.set_column(table.schema.get_field_index(FRONT), FRONT, pa.array([{"bytes": png(frames(0, 1, 8)[0]), "path": None}] * 4)),
    )
    result = run("ingest", good, bad, gone, "--out", tmp_path / "out", "--skip-bad")
    assert result.exit_code == 0, result.output
    assert [e.info["from"] for e in read_dataset(tmp_path / "out")] == ["episode 0"] * 2
    skipped = read_description(tmp_path / "out")["skipped"]
    assert len(skipped) == 3 and not any("unfinished" in line or str(tmp_path) in line for line in skipped)
    for part in ("episode_000001.parquet: episode 1", "bad", "gone/meta/info.json"):
        assert any(part in line for line in skipped), part
    assert result.output.count("left out: ") == 3


def test_a_set_without_pictures_is_refused(tmp_path):
    folder = lerobot_folder(tmp_path / "set")
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    edit_info(folder, features={name: feature for name, feature in features.items() if name != FRONT})
    assert "no pictures" in refused("ingest", folder, "--out", tmp_path / "x") and not (tmp_path / "x").exists()
    assert run("inspect", folder).exit_code == 0


def test_ragged_rows_with_a_fitting_sum_do_not_shift(tmp_path):
    folder = lerobot_folder(tmp_path / "set", action=lambda n: [[0.1], [0.2, 0.3, 0.4]] + [[0.5, 0.6]] * (n - 2))
    assert "1 numbers in row 0, expected [2] a row" in refused("ingest", folder, "--out", tmp_path / "a/b")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # a refused command leaves nothing


def test_sizes_are_compared_before_memory_is_spent(tmp_path):
    folder = lerobot_folder(tmp_path / "set")
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    edit_info(folder, features=features | {"action": features["action"] | {"shape": [10**9]}})
    assert "1000000000" in refused("ingest", folder, "--out", tmp_path / "x")
    bomb = lerobot_folder(tmp_path / "bomb", lengths=(4,))
    count = 10**7
    table = pa.table({"episode_index": pa.array(np.zeros(count, np.int64)).dictionary_encode()})
    pq.write_table(table, bomb / "data/chunk-000/episode_000000.parquet", compression="zstd")
    assert (bomb / "data/chunk-000/episode_000000.parquet").stat().st_size < 10**6
    assert "do not trust" in refused("ingest", bomb, "--out", tmp_path / "x")


def test_a_pipe_is_no_dataset(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "device or pipe" in refused("ingest", tmp_path / "pipe", "--out", tmp_path / "x")
    folder = lerobot_folder(tmp_path / "set")
    (folder / "data/chunk-000/episode_000000.parquet").unlink()
    os.mkfifo(folder / "data/chunk-000/episode_000000.parquet")
    assert "episode_000000.parquet" in refused("ingest", folder, "--out", tmp_path / "x")


def test_names_in_groups_are_kept(tmp_path):
    folder = lerobot_folder(tmp_path / "set")
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    edit_info(folder, features=features | {"action": features["action"] | {"names": {"left": ["l0"], "right": ["r0"]}}})
    assert open_source(folder, SourceConfig()).action_names == ["l0", "r0"]
    with pytest.raises(UserError, match="no feature 'wings', found .*choose with --state"):
        open_source(folder, SourceConfig(action="wings"))


# Cut off


@pytest.mark.parametrize("at", ["write_artifact", "staged"])
def test_what_is_cut_off_at_the_very_end_is_not_lost(tmp_path, monkeypatch, at):
    from worldenv_cli.data import ingest as ingestion
    from worldenv_cli.data.selection import Selection

    source, out = open_source(lerobot_folder(tmp_path / "set"), SourceConfig()), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(ingestion, at, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            ingestion.ingest_sources([source], out, Selection())
    assert not out.exists()
    source.read = None  # nothing is read again
    ingestion.ingest_sources([source], out, Selection())
    assert len(read_dataset(out)) == 2 and sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]
    np.testing.assert_allclose(read_dataset(out)[0].actions, numbers(0, 6, 2)[:-1], atol=1e-6)


@pytest.mark.parametrize("damage", ["{", "", '{"features": 3}'])
def test_a_note_that_was_cut_off_is_no_obstacle(tmp_path, damage):
    from worldenv_cli.data.writer import finished_episodes

    folder = tmp_path / "set"

    def cut():
        yield make_episode(0)
        yield make_episode(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(folder, cut(), data_files_size_in_mb=0)
    note = folder / ".unfinished/file-000000.json"
    assert len(finished_episodes(folder)) == 1
    note.write_text(damage)
    assert finished_episodes(folder) == []
    assert len(read_dataset(write(folder, [make_episode(0), make_episode(1)], resume=True))) == 2


def test_numbers_may_lie_in_lists_or_categories_of_their_own(tmp_path):
    """As other writers leave them: a list of one for every number, large lists, categories; the task as plain text."""
    listed = {
        "episode_index": lambda n: pa.array([[{6: 0, 4: 1}[n]]] * n, pa.large_list(pa.int64())),
        "frame_index": lambda n: pa.array([[k] for k in range(n)], pa.large_list(pa.int64())),
        "task_index": lambda n: pa.array([[0]] * n),
        "action": lambda n: pa.array(numbers(n, n, 2).tolist(), pa.large_list(pa.float64())),
    }
    categories = {"task_index": lambda n: pa.array([0] * n).dictionary_encode(), "frame_index": lambda n: pa.array(range(n)).dictionary_encode()}
    for number, (columns, tasks) in enumerate(((listed, []), (categories, []), (listed, ["pick it"]), ({}, "pick it"))):
        path = lerobot_folder(tmp_path / f"set{number}", tasks=tasks, **columns)
        (path / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "pick it"}\n')
        ingested(tmp_path / f"out{number}", path)
        assert [episode.instruction for episode in read_dataset(tmp_path / f"out{number}")] == ["pick it"] * 2


def test_an_episode_that_is_listed_twice_is_told(tmp_path):
    path = lerobot_folder(tmp_path / "set")
    rows = (path / "meta/episodes.jsonl").read_text()
    (path / "meta/episodes.jsonl").write_text(rows + rows.splitlines()[0])
    assert "episode_index 0 occurs twice" in refused("ingest", path, "--out", tmp_path / "out")


def test_instructions_are_asked_of_the_table_of_tasks_only_where_episodes_do_not_say_them(version_3, tmp_path):
    folder, episodes = version_3
    (folder / "meta/tasks.parquet").unlink()
    assert {one.instruction for one in ingested(tmp_path / "out", folder)} == {one.instruction for one in episodes}


def test_how_outcomes_are_known_is_said_of_every_file(tmp_path):
    path = lerobot_folder(tmp_path / "set", **{"next.success": lambda n: np.arange(n) == n - 1})
    table = path / "data/chunk-000/episode_000000.parquet"
    pq.write_table(pq.read_table(table).drop_columns("next.success"), table)
    result = run("ingest", path, "--out", tmp_path / "out")
    assert "2 episodes: 1 success, 1 unknown (next.success, recorded)" in result.output
    result = run("ingest", lerobot_folder(tmp_path / "bare"), "--out", tmp_path / "dark")
    assert "2 unknown (unknown: neither" in result.output
    assert "2 unknown (unknown, as the dataset says)" in run("ingest", tmp_path / "dark", "--out", tmp_path / "again").output
