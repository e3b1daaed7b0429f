"""From recorded data to a dataset: what is taken, what is kept of it, and what the commands say."""

import json

import numpy as np
import pytest
from recorded import frames, lerobot_folder, libero_file, numbers, rlds_folder, robomimic_file
from typer.testing import CliRunner

from worldenv_cli.cli import app
from worldenv_cli.data.dataset import read_dataset, read_description
from worldenv_cli.data.ingest import resized


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ingested(out, *arguments):
    result = run("ingest", *arguments, "--out", out)
    assert result.exit_code == 0, result.output
    return read_dataset(out)


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.output
    return result.stderr


def test_a_dataset_holds_what_the_source_held(tmp_path):
    path = robomimic_file(tmp_path / "image.hdf5")
    episodes = ingested(tmp_path / "set", path, "--instruction", "lift the cube")
    assert [episode.instruction for episode in episodes] == ["lift the cube"] * 2
    for number, (episode, steps) in enumerate(zip(episodes, (6, 4), strict=True), 1):
        np.testing.assert_array_equal(episode.frames["agentview"], frames(number, steps + 1))
        np.testing.assert_allclose(episode.actions, numbers(number, steps, 7), atol=1e-6)
        np.testing.assert_allclose(episode.states[:, :3], numbers(number, steps + 1, 3), atol=1e-6)
        assert episode.success.tolist() == [False] * steps + [True]
        assert episode.info["from"] == f"image.hdf5: demo_{number}"
    described = read_description(tmp_path / "set")
    assert described["action"]["unit"] == [0.05] * 3 + [0.5] * 3 + [1.0] and described["control_hz"] == 20
    assert described["cameras"]["agentview"] == {"orientation": "upright, not mirrored", "size": [16, 16]}
    config = json.loads((tmp_path / "set/config.json").read_text())
    assert config["kind"] == "dataset" and config["taken"] == ["image.hdf5: demo_1", "image.hdf5: demo_2"]
    assert str(tmp_path) not in "".join(file.read_text() for file in (tmp_path / "set").rglob("*.json"))


def test_a_second_time_nothing_is_made_and_a_change_makes_it_again(tmp_path):
    path, out = lerobot_folder(tmp_path / "source"), tmp_path / "set"
    ingested(out, path)
    assert "up to date" in run("ingest", path, "--out", out).output
    assert "would be made of 2 episodes" in run("ingest", path, "--out", out, "--resize", 8, "--dry-run").output
    assert ingested(out, path, "--resize", "8x12")[0].frames["front"].shape[1:3] == (8, 12)
    assert ingested(out, path, "--resize", "8x12", "--instruction", "in other words")[0].instruction == "in other words"


def test_a_changed_source_is_read_again(tmp_path):
    """Also where its size stays the same."""
    path, out = robomimic_file(tmp_path / "image.hdf5", lengths=(6,)), tmp_path / "set"
    before = ingested(out, path, "--instruction", "lift")
    robomimic_file(path, lengths=(6,), actions=lambda steps: -numbers(1, steps, 7))
    after = ingested(out, path, "--instruction", "lift")
    np.testing.assert_array_equal(after[0].actions, -before[0].actions)


@pytest.mark.parametrize("format", ["rlds", "video"])
def test_the_control_rate_can_be_told(tmp_path, format):
    """RLDS records none, and the one of a LeRobotDataset may be nominal; its videos are still found by it."""
    path = rlds_folder(tmp_path / "source") if format == "rlds" else lerobot_folder(tmp_path / "source", video=True)
    as_recorded, told = ingested(tmp_path / "a", path, "--control-hz", 20), ingested(tmp_path / "b", path, "--control-hz", 5)
    assert read_description(tmp_path / "b")["control_hz"] == 5 != read_description(tmp_path / "a")["control_hz"]
    for one, other in zip(as_recorded, told, strict=True):
        for camera in one.frames:
            np.testing.assert_array_equal(one.frames[camera], other.frames[camera])


def test_episodes_are_drawn_by_task_and_seed(tmp_path):
    files = tmp_path / "files"
    for task in ("open_the_drawer", "push_the_plate"):
        libero_file(files / f"{task}_demo.hdf5", lengths=(5,) * 12)

    def taken(*arguments):
        return [episode.info["from"] for episode in ingested(tmp_path / "set", files, *arguments)]

    five = taken("--demos-per-task", 5)
    assert len(five) == 10 and len(set(five)) == 10 and sum("drawer" in name for name in five) == 5
    assert taken("--demos-per-task", 5, "--seed", 1) != five
    assert taken("--demos-per-task", 5, "--tasks", "push the plate") == five[5:]
    numbered = [int(name.rpartition("_")[2]) for name in taken("--tasks", "push the plate")]
    assert numbered == list(range(12))  # by number, not by text
    assert "12 episodes, expected 13" in refused("ingest", files, "--out", tmp_path / "x", "--demos-per-task", 13)
    assert "not in the sources" in refused("ingest", files, "--out", tmp_path / "x", "--tasks", "sing")


def test_cameras_are_chosen_and_renamed(tmp_path):
    path = libero_file(tmp_path / "open_it_demo.hdf5")
    episodes = ingested(tmp_path / "set", path, "--cameras", "image=front")
    assert list(episodes[0].frames) == ["front"]
    np.testing.assert_array_equal(episodes[0].frames["front"], frames(0, 6)[:, ::-1, ::-1])
    assert "no camera 'side'" in refused("ingest", path, "--out", tmp_path / "x", "--cameras", "side=front")
    assert "each its own name" in refused("ingest", path, "--out", tmp_path / "x", "--cameras", "image=a,wrist_image=a")
    assert "expected old=new" in refused("ingest", path, "--out", tmp_path / "x", "--cameras", "image=")


def test_intrinsics_follow_the_size_of_the_pictures(tmp_path):
    from worldenv_cli.data.description import scaled_camera

    camera = {"size": [100, 200], "intrinsics": [[50, 0, 100], [0, 50, 50], [0, 0, 1]], "extrinsics": "same"}
    scaled = scaled_camera(camera, (50, 50))
    np.testing.assert_allclose(scaled["intrinsics"], [[12.5, 0, 25], [0, 25, 25], [0, 0, 1]])
    assert scaled["size"] == [50, 50] and scaled["recorded_size"] == [100, 200] and scaled["extrinsics"] == "same"


def test_shrinking_is_averaging():
    shown = frames(0, 2)
    wanted = shown.reshape(2, 8, 2, 8, 2, 3).mean((2, 4))
    apart = np.abs(resized(shown, (8, 8)) - wanted)
    assert apart.max() <= 1  # it rounds after each of the two directions
    assert resized(shown, None) is shown and resized(shown, (16, 16)) is shown


def test_sources_merge_where_their_schemas_agree(tmp_path):
    a, b = lerobot_folder(tmp_path / "a"), lerobot_folder(tmp_path / "b", version="v2.0", video=True, lengths=(5,))
    assert len(ingested(tmp_path / "set", a, b)) == 3
    faster = lerobot_folder(tmp_path / "c", info={"fps": 30})
    message = refused("ingest", a, faster, "--out", tmp_path / "x")
    assert "control rate (Hz) is 30, but 10 in" in message and str(faster) in message
    slower = lerobot_folder(tmp_path / "e", info={"fps": 20})
    other = rlds_folder(tmp_path / "d"), "--out", tmp_path / "x", "--control-hz", 20
    assert "cameras are ['image'], but ['front']" in refused("ingest", slower, *other)
    features = json.loads((a / "meta/info.json").read_text())["features"]
    renamed = features | {"observation.state": features["observation.state"] | {"names": ["x", "y", "z"]}}
    assert "state is ['x', 'y', 'z'], but" in refused(
        "ingest", a, lerobot_folder(tmp_path / "f", info={"features": renamed}), "--out", tmp_path / "x"
    )


def test_bad_episodes_stop_or_are_left_out_and_listed(tmp_path):
    path = libero_file(tmp_path / "open_it_demo.hdf5", lengths=(6, 2, 5))  # the second is too short
    out = tmp_path / "set"
    message = refused("ingest", path, "--out", out)
    assert "demo_1: 2 steps, expected three" in message and "--skip-bad" in message and not out.exists()
    result = run("ingest", path, "--out", out, "--skip-bad")
    assert result.exit_code == 0 and "left out: " in result.output and "demo_1" in result.output
    assert [len(episode.actions) for episode in read_dataset(out)] == [5, 4]
    assert len(read_description(out)["skipped"]) == 1


def test_what_is_left_out_is_written_without_this_machines_folders(tmp_path, monkeypatch):
    """Also of sources that could not be opened, or of which nothing is taken, however they are named."""
    whole, cut = libero_file(tmp_path / "a/open_it_demo.hdf5", lengths=(6, 2, 5)), tmp_path / "b/cut_demo.hdf5"
    cut.parent.mkdir()
    cut.write_bytes(whole.read_bytes()[:900])
    short = libero_file(tmp_path / "c/shut_it_demo.hdf5", lengths=(2,))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for number, paths in enumerate(((whole, cut, short), ("../a", "../b/cut_demo.hdf5", "../c/shut_it_demo.hdf5"))):
        out = tmp_path / f"set{number}"
        result = run("ingest", *paths, "--out", out, "--skip-bad")
        assert result.exit_code == 0 and result.output.count("left out: ") == 3, result.output
        skipped = read_description(out)["skipped"]
        assert sorted(line.partition("_demo")[0].rpartition("/")[2] for line in skipped) == ["cut", "open_it", "shut_it"]
        texts = "".join(file.read_text() for file in out.rglob("*") if file.suffix in (".json", ".md"))
        assert str(tmp_path) not in texts and "../" not in texts


def test_names_with_line_breaks_do_not_break_lines(tmp_path):
    feature = {"dtype": "image", "shape": [16, 16, 3], "names": ["height", "width", "channel"]}
    path = lerobot_folder(tmp_path / "set", **{"observation.images.a\nb": lambda n: [{"bytes": b"", "path": None}] * n})
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["observation.images.a\nb"] = feature
    (path / "meta/info.json").write_text(json.dumps(info))
    assert "no picture there" in refused("ingest", path, "--out", tmp_path / "x")
    info["features"]["observation.images.a\nb"] |= {"info": {"is_depth_map": True}}
    (path / "meta/info.json").write_text(json.dumps(info))
    assert "depth" in refused("ingest", path, "--out", tmp_path / "x")
    said = run("ingest", path, "--out", tmp_path / "x", "--cameras", "front").output
    assert "camera a b is left out" in said


def test_no_episode_left_is_an_error(tmp_path):
    path = libero_file(tmp_path / "open_it_demo.hdf5", lengths=(2,))
    assert "no episodes to write" in refused("ingest", path, "--out", tmp_path / "set", "--skip-bad")
    assert not (tmp_path / "set").exists()
    dark = lerobot_folder(tmp_path / "dark", **{"observation.images.front": lambda n: [{"bytes": b"GIF89a", "path": None}] * n})
    message = refused("ingest", dark, "--out", tmp_path / "set", "--skip-bad")  # found out while pictures are read
    assert "dark: no episodes to write, all 2 are left out: " in message and "but a GIF file" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dark", "open_it_demo.hdf5"]


@pytest.mark.parametrize("make, camera", [(libero_file, "agentview_rgb"), (robomimic_file, "agentview_image")])
def test_pictures_of_another_size_are_left_out_wherever_they_stand(tmp_path, make, camera):
    import h5py

    path = make(tmp_path / "open_it_demo.hdf5", lengths=(5, 5, 5))
    with h5py.File(path, "a") as file:
        first = file["data"][sorted(file["data"])[0]]
        for group in {"obs", "next_obs"} & set(first):
            small = first[f"{group}/{camera}"][()][:, :8, :8]
            del first[f"{group}/{camera}"]
            first[f"{group}/{camera}"] = small
        name = first.name.rpartition("/")[2]
    episodes = ingested(tmp_path / "set", path, "--instruction", "open it", "--skip-bad")
    (skipped,) = read_description(tmp_path / "set")["skipped"]
    assert len(episodes) == 2 and skipped.startswith(f"open_it_demo.hdf5: {name}, ") and "in most demonstrations" in skipped


def test_a_source_that_is_given_twice_is_told(tmp_path, monkeypatch):
    path = lerobot_folder(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    assert "given twice" in refused("ingest", path, "set", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["image.hdf5", "--out", "x"], "no instruction"),
        (["image.hdf5"], "--out is missing"),
        (["nothing", "--out", "x"], "does not exist"),
        (["image.hdf5", "--out", "x", "--format", "zarr"], "expected one of lerobot"),
        (["image.hdf5", "--out", "x", "--format", "libero"], "--format robomimic"),
        (["image.hdf5", "--out", "x", "--instruction", "lift", "--resize", "small"], "expected height x width"),
        (["image.hdf5", "--out", "x", "--instruction", "lift", "--resize", "5x5"], "8 to 4096"),
        (["image.hdf5", "--out", "x", "--instruction", "lift", "--filter-key", "valid"], "found .'train'."),
        (["image.hdf5", "--out", "x", "--instruction", "lift", "--action", "forces"], "no forces"),
    ],
)
def test_mistakes_are_told(tmp_path, monkeypatch, arguments, told):
    import re

    monkeypatch.chdir(tmp_path)
    robomimic_file(tmp_path / "image.hdf5")
    assert re.search(told, refused("ingest", *arguments))
    assert not (tmp_path / "x").exists()


def test_inspection_shows_what_is_there(tmp_path):
    path = lerobot_folder(tmp_path / "source", action=lambda n: np.c_[np.full(n, 0.5), np.where(np.arange(n) % 2, 1.0, -1.0)].tolist())
    result = run("inspect", path, "--sheet", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.output
    for words in ("lerobot v2.1", "10 Hz", "pick it", "3 / 4 / 5", "unknown", "constant", "two values", "so100", "16 x 16"):
        assert words in result.output, words
    from PIL import Image

    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 300 and sheet.height > 100
    assert "(no instruction)" in run("inspect", robomimic_file(tmp_path / "image.hdf5")).output
    assert "does not exist" in refused("inspect", tmp_path / "nothing")


def test_inspection_of_a_dataset_of_ours(tmp_path):
    ingested(tmp_path / "set", libero_file(tmp_path / "open_it_demo.hdf5"), "--cameras", "image=front")
    result = run("inspect", tmp_path / "set")
    assert "3 / 4 / 5" in result.output and "upright, mirrored" in result.output and "open it" in result.output


def test_memory_does_not_grow_with_the_number_of_episodes(tmp_path):
    """Ten times the episodes, the same peak: measured in processes of their own."""
    import os
    import subprocess
    import sys

    peaks = []
    for count in (40, 400):
        path = robomimic_file(tmp_path / f"{count}.hdf5", lengths=(12,) * count, **{"obs/agentview_image": None, "next_obs/agentview_image": None})
        import h5py

        with h5py.File(path, "a") as file:
            for number in range(1, count + 1):
                for group in ("obs", "next_obs"):
                    file[f"data/demo_{number}/{group}/agentview_image"] = frames(number, 12, size=96)
        code = (
            "import sys, resource; from worldenv_cli.cli import app; "
            "app(sys.argv[1:], standalone_mode=False); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        arguments = ["ingest", str(path), "--out", str(tmp_path / f"set{count}"), "--instruction", "lift"]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.2 * peaks[0], peaks


def test_a_cut_off_ingestion_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    """Cut off after three files of episodes: those are not read again, and the dataset is the one that an undisturbed call makes."""
    from worldenv_cli.data import ingest as ingestion
    from worldenv_cli.data.selection import Selection
    from worldenv_cli.data.sources import SourceConfig, open_source

    path = robomimic_file(tmp_path / "image.hdf5", lengths=(40,) * 12, **{"obs/agentview_image": None, "next_obs/agentview_image": None})
    import h5py

    with h5py.File(path, "a") as file:
        for number in range(1, 13):
            for group in ("obs", "next_obs"):
                file[f"data/demo_{number}/{group}/agentview_image"] = frames(number, 40, size=128)

    def source(stop_at=None):
        found = open_source(path, SourceConfig(instruction="lift"))
        read, seen = found.read, []

        def counted(listed, cameras):
            if cameras and listed.name.endswith(f"demo_{stop_at}"):
                raise KeyboardInterrupt
            seen.extend([listed.name] if cameras else [])
            return read(listed, cameras)

        found.read = counted
        return found, seen

    whole, _ = source()
    ingestion.ingest_sources([whole], tmp_path / "whole", Selection(), file_size_in_mb=4)
    cut, _ = source(stop_at=10)
    with pytest.raises(KeyboardInterrupt):
        ingestion.ingest_sources([cut], tmp_path / "set", Selection(), file_size_in_mb=4)
    assert not (tmp_path / "set").exists()
    again, seen = source()
    ingestion.ingest_sources([again], tmp_path / "set", Selection(), file_size_in_mb=4)
    assert 0 < len(seen) < 9
    for name in ("meta/stats.json", "meta/info.json", "meta/worldenv.json", "config.json"):
        assert (tmp_path / "set" / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    for mine, theirs in zip(read_dataset(tmp_path / "set"), read_dataset(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(mine.frames["agentview"], theirs.frames["agentview"])
        np.testing.assert_array_equal(mine.actions, theirs.actions)
        assert mine.info == theirs.info
    assert len(list((tmp_path / "set/data").rglob("*.parquet"))) > 3
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_pictures_can_be_kept_as_video(tmp_path):
    """Smooth pictures come back almost as they were, every episode from its own place in the file; readable as a source again."""
    import h5py

    path = robomimic_file(tmp_path / "image.hdf5", lengths=(9, 7, 12), **{"obs/agentview_image": None, "next_obs/agentview_image": None})
    ramp = np.linspace(0, 1, 32)
    smooth = [
        np.stack([np.stack([200 * ramp[:, None] * np.ones(32), 20 * t * np.ones((32, 32)), 80 * n + 0 * np.ones((32, 32))], -1) for t in range(13)])
        for n in range(3)
    ]
    with h5py.File(path, "a") as file:
        for n, steps in enumerate((9, 7, 12)):
            file[f"data/demo_{n + 1}/obs/agentview_image"] = smooth[n][:steps].astype(np.uint8)
            file[f"data/demo_{n + 1}/next_obs/agentview_image"] = smooth[n][1 : steps + 1].astype(np.uint8)
    out = tmp_path / "set"
    exact, filmed = ingested(tmp_path / "exact", path, "--instruction", "lift"), ingested(out, path, "--instruction", "lift", "--video")
    for mine, theirs in zip(filmed, exact, strict=True):
        apart = np.abs(mine.frames["agentview"].astype(int) - theirs.frames["agentview"])
        assert apart.mean() < 3 and mine.frames["agentview"].shape == theirs.frames["agentview"].shape
        np.testing.assert_array_equal(mine.actions, theirs.actions)
    assert len(list(out.rglob("*.mp4"))) == 1 and json.loads((out / "meta/info.json").read_text())["video_path"].startswith("videos/")
    again = ingested(tmp_path / "again", out)
    for mine, theirs in zip(again, filmed, strict=True):
        np.testing.assert_array_equal(mine.frames["agentview"], theirs.frames["agentview"])
    odd = robomimic_file(
        tmp_path / "odd.hdf5", **{"obs/agentview_image": lambda n: frames(0, n, 15), "next_obs/agentview_image": lambda n: frames(0, n, 15)}
    )
    assert "expected even sides" in refused("ingest", odd, "--out", tmp_path / "x", "--instruction", "lift", "--video")
