"""The dataset on disk: exact there and back, readable by others, and laid out as LeRobot lays it out."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from random_dataset import DESCRIPTION, assert_same, copied, make_episode, several, write

from worldenv_cli.data.dataset import Episode, read_dataset, read_description, write_dataset
from worldenv_cli.data.statistics import QUANTILES, column_statistics, histogram, image_statistics, sample_frames
from worldenv_cli.errors import UserError

FIXTURE = Path(__file__).parents[2] / "shared" / "fixtures" / "lerobot_v30"
needs_fixture = pytest.mark.skipif(not FIXTURE.exists(), reason=f"{FIXTURE} is not here: a dataset written by lerobot 0.4.4 to compare with")


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return several()


@pytest.fixture(scope="module")
def written(episodes, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("dataset") / "set", episodes)


def test_round_trip_is_exact(written, episodes):
    assert_same(read_dataset(written), episodes)


def test_round_trip_of_single_numbers_and_one_camera(tmp_path):
    """LeRobot stores a feature of one number as a scalar column."""
    episodes = [make_episode(seed, states=1, actions=1, cameras=[("front", 16, 16)]) for seed in range(2)]
    write(tmp_path / "set", episodes, sizes=(1, 1))
    assert pq.read_schema(tmp_path / "set/data/chunk-000/file-000.parquet").field("action").type == pa.float32()
    assert_same(read_dataset(tmp_path / "set"), episodes)


def test_description_is_kept_and_explains_the_closing_row(written):
    description = read_description(written)
    assert "last row of every episode" in description.pop("closing_row")
    assert description == DESCRIPTION


def test_episodes_are_taken_one_at_a_time(tmp_path):
    """A data file grows while later episodes are still unmade, and a folder that was cut off is not a dataset."""

    def cut_off():
        yield make_episode(0)
        yield make_episode(1)
        assert (tmp_path / "set/data/chunk-000/file-000.parquet").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", cut_off())
    with pytest.raises(UserError, match="info.json: missing"):
        read_dataset(tmp_path / "set")
    with pytest.raises(UserError, match="holds a dataset or part of one"):  # its files would be taken for the new dataset's
        write(tmp_path / "set", [make_episode(0)])


def test_datasets_library_decodes_the_pictures(written, episodes, tmp_path):
    import datasets

    rows = datasets.load_dataset("parquet", data_files=str(written / "data/*/*.parquet"), split="train", cache_dir=str(tmp_path))
    assert isinstance(rows.features["observation.images.front"], datasets.Image)
    assert len(rows) == sum(len(episode.states) for episode in episodes)
    everything = {
        "observation.images.front": np.concatenate([episode.frames["front"] for episode in episodes]),
        "observation.images.wrist": np.concatenate([episode.frames["wrist"] for episode in episodes]),
        "observation.state": np.concatenate([episode.states for episode in episodes]),
    }
    for index, row in enumerate(rows):
        for name, values in everything.items():
            np.testing.assert_array_equal(np.asarray(row[name], dtype=values.dtype), values[index])
    assert rows[0]["observation.images.front"].mode == "RGB"


def test_rows(written, episodes):
    """One row group an episode; the closing row holds still, repeats the success and is done, like the row before."""
    file = pq.ParquetFile(written / "data/chunk-000/file-000.parquet")
    assert file.num_row_groups == len(episodes)
    index = 0
    for number, episode in enumerate(episodes):
        group = file.metadata.row_group(number)
        assert {group.column(i).compression for i in range(group.num_columns)} == {"SNAPPY"}
        rows = file.read_row_group(number).to_pylist()
        steps = len(episode.actions)
        assert len(rows) == steps + 1
        assert [row["action"] for row in rows] == [*episode.actions.tolist(), [0.0, 0.0]]
        assert [row["next.success"] for row in rows] == [*episode.success[1:].tolist(), bool(episode.success[-1])]
        assert [row["next.done"] for row in rows] == [False] * (steps - 1) + [True, True]
        assert [row["frame_index"] for row in rows] == list(range(steps + 1))
        assert [row["timestamp"] for row in rows] == (np.arange(steps + 1) / 20).astype(np.float32).tolist()
        assert [row["index"] for row in rows] == list(range(index, index + steps + 1))
        assert {row["episode_index"] for row in rows} == {number}
        assert {row["task_index"] for row in rows} == {{"push": 0, "pull it": 1, "lift": 2}[episode.instruction]}
        assert rows[1]["observation.images.wrist"]["path"] == "frame-000001.png"
        assert rows[1]["observation.images.wrist"]["bytes"].startswith(b"\x89PNG")
        index += steps + 1


def test_info(written):
    info = json.loads((written / "meta/info.json").read_text())
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0",
        "robot_type": "sawyer",
        "total_episodes": 4,
        "total_frames": 6 + 2 + 10 + 41,
        "total_tasks": 3,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 20,
        "splits": {"train": "0:4"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
    }
    assert features["observation.images.front"] == {"dtype": "image", "shape": [12, 16, 3], "names": ["height", "width", "channel"]}
    assert features["observation.state"] == {"dtype": "float32", "shape": [3], "names": ["s0", "s1", "s2"]}
    assert features["action"] == {"dtype": "float32", "shape": [2], "names": ["a0", "a1"]}
    assert features["next.success"] == features["next.done"] == {"dtype": "bool", "shape": [1], "names": None}
    assert features["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}
    assert list(features) == pq.read_schema(written / "data/chunk-000/file-000.parquet").names


def test_large_datasets_have_several_files(tmp_path):
    """An episode of 101 noisy 64 x 64 pictures is 1.2 MB: at 3 MB a file holds two."""
    episodes = [make_episode(seed, 100, cameras=[("front", 64, 64)]) for seed in range(5)]
    write(tmp_path / "set", episodes, data_files_size_in_mb=3)
    files = sorted((tmp_path / "set/data").rglob("*.parquet"))
    assert [file.name for file in files] == ["file-000.parquet", "file-001.parquet", "file-002.parquet"]
    assert max(file.stat().st_size for file in files) < 3 * 2**20
    rows = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["data/file_index"] for row in rows] == [0, 0, 1, 1, 2]
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(101 * i, 101 * (i + 1)) for i in range(5)]
    assert_same(read_dataset(tmp_path / "set"), episodes)


# ---- statistics


@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (1000, 4), (50,)])
def test_column_statistics_are_numpys(shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = column_statistics(values)
    exact = values.astype(np.float64).reshape(len(values), -1)
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_array_equal(found[name], getattr(np, name)(exact, axis=0))
    for name, quantile in QUANTILES.items():
        np.testing.assert_array_equal(found[name], np.quantile(exact, quantile, axis=0))
    assert found["count"].tolist() == [len(values)]


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (3, 5, 7, 3), (20, 16, 16, 3)])
@pytest.mark.parametrize("high", [2, 256])
def test_image_statistics_are_numpys(shape, high):
    frames = np.random.default_rng(1).integers(0, high, shape, dtype=np.uint8)
    found = image_statistics(histogram(frames), len(frames))
    exact = frames.reshape(-1, 3) / 255
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(found[name], getattr(np, name)(exact, axis=0).reshape(3, 1, 1), rtol=1e-12, atol=1e-12)
    for name, quantile in QUANTILES.items():
        np.testing.assert_allclose(found[name], np.quantile(exact, quantile, axis=0).reshape(3, 1, 1), rtol=1e-9, atol=1e-12)
    assert found["count"].tolist() == [len(frames)]


def test_sample_keeps_first_and_last_frame_and_bounds_the_work():
    frames = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 300, 200, 3), dtype=np.uint8)
    sample = sample_frames(frames)
    assert sample.shape == (16, 100, 67, 3)
    assert (sample[0, 0, 0, 0], sample[-1, 0, 0, 0]) == (0, 99)
    np.testing.assert_array_equal(sample_frames(frames[:3, :128, :64]), frames[:3, :128, :64])


def test_statistics_on_disk_are_those_of_the_whole_column(written, episodes):
    statistics = json.loads((written / "meta/stats.json").read_text())
    table = pq.read_table(written / "data/chunk-000/file-000.parquet")
    per_episode = pq.read_table(written / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert list(statistics) == table.column_names
    for name in table.column_names:
        if name.startswith("observation.images."):
            sampled = [sample_frames(episode.frames[name.removeprefix("observation.images.")]) for episode in episodes]
            pixels = np.concatenate(sampled).reshape(-1, 3) / 255
            shape, count = (3, 1, 1), sum(map(len, sampled))
        else:
            pixels = np.array(table[name].to_pylist(), dtype=np.float64).reshape(len(table), -1)
            shape, count = (pixels.shape[1],), len(table)
        expected = {key: getattr(np, key)(pixels, axis=0) for key in ("min", "max", "mean", "std")}
        expected |= {key: np.quantile(pixels, quantile, axis=0) for key, quantile in QUANTILES.items()}
        assert list(statistics[name]) == ["min", "max", "mean", "std", "count", *QUANTILES]
        assert statistics[name]["count"] == [count]
        for key, value in expected.items():
            np.testing.assert_allclose(statistics[name][key], value.reshape(shape), rtol=1e-9, atol=1e-12)
    for row, episode in zip(per_episode, episodes, strict=True):
        np.testing.assert_array_equal(row["stats/observation.state/q10"], np.quantile(episode.states.astype(np.float64), 0.1, axis=0))
        assert row["stats/action/count"] == [len(episode.states)]
    assert statistics["next.done"]["min"] == [False] and isinstance(statistics["next.done"]["min"][0], bool)
    assert statistics["index"]["max"] == [len(table) - 1] and isinstance(statistics["index"]["max"][0], int)


# ---- against lerobot's own files


@needs_fixture
def test_reads_what_lerobot_wrote():
    expected = np.load(FIXTURE / "image_expected.npz")
    episodes = read_dataset(FIXTURE / "image")
    facts = json.loads((FIXTURE / "facts.json").read_text())["image"]
    assert [len(episode.states) for episode in episodes] == facts["lengths"]
    assert [episode.instruction for episode in episodes] == facts["tasks"]
    np.testing.assert_array_equal(np.concatenate([episode.states for episode in episodes]), expected["all/observation.state"])
    owner, frame = expected["all/episode_index"], expected["all/frame_index"]
    for number, episode in enumerate(episodes):
        assert len(episode.actions) == len(episode.states) - 1
        np.testing.assert_array_equal(episode.actions, expected["all/action"][owner == number][:-1])
        assert episode.outcome == "unknown" and not episode.success.any()  # nobody recorded it
        assert episode.info == {"task": episode.instruction, "source": "lerobot", "outcome": "unknown"}
        assert episode.states.dtype == episode.actions.dtype == np.float32
    for index in expected["indices"]:
        episode = episodes[owner[index]]
        assert set(episode.frames) == {"image", "wrist_image"}
        for camera, frames in episode.frames.items():
            np.testing.assert_array_equal(frames[frame[index]].transpose(2, 0, 1), expected[f"{index}/observation.images.{camera}"])
        assert episode.instruction == str(expected[f"{index}/task"])


@needs_fixture
def test_writes_as_lerobot_wrote(tmp_path):
    """The fixture's content, written again: same files, columns, types, metadata and numbers, but for what is documented as ours."""
    theirs, ours = FIXTURE / "image", tmp_path / "set"
    info = json.loads((theirs / "meta/info.json").read_text())
    names = {f"{short}_names": info["features"][name]["names"] for short, name in (("state", "observation.state"), ("action", "action"))}
    write_dataset(ours, read_dataset(theirs), fps=20, **names, description={}, robot_type="panda")
    assert {str(path.relative_to(ours)) for path in ours.rglob("*.*")} - {str(path.relative_to(theirs)) for path in theirs.rglob("*.*")} == {
        "meta/worldenv.json"
    }
    extra = {"next.success", "next.done"}

    found = json.loads((ours / "meta/info.json").read_text())
    assert set(found["features"]) - set(info["features"]) == extra
    found["features"] = {name: feature for name, feature in found["features"].items() if name not in extra}
    assert found == info and list(found["features"]) == list(info["features"])

    path = "data/chunk-000/file-000.parquet"
    mine, reference = pq.read_table(ours / path), pq.read_table(theirs / path)
    assert [name for name in mine.column_names if name not in extra] == reference.column_names
    for name in reference.column_names:
        assert mine.schema.field(name).type == reference.schema.field(name).type
        if name not in ("action", "observation.images.image", "observation.images.wrist_image"):
            assert mine[name].to_pylist() == reference[name].to_pylist()
    features = [json.loads(table.schema.metadata[b"huggingface"])["info"]["features"] for table in (mine, reference)]
    assert {name: feature for name, feature in features[0].items() if name not in extra} == features[1]
    assert pq.ParquetFile(ours / path).num_row_groups == pq.ParquetFile(theirs / path).num_row_groups

    path = "meta/tasks.parquet"
    mine, reference = pq.read_table(ours / path), pq.read_table(theirs / path)
    assert mine.schema.equals(reference.schema) and mine.to_pylist() == reference.to_pylist()
    pandas_metadata = [json.loads(table.schema.metadata[b"pandas"])["index_columns"] for table in (mine, reference)]
    assert pandas_metadata[0] == pandas_metadata[1]

    path = "meta/episodes/chunk-000/file-000.parquet"
    mine, reference = pq.read_table(ours / path), pq.read_table(theirs / path)
    ours_alone = [name for name in mine.column_names if name not in reference.column_names]
    assert ours_alone.pop() == "worldenv_info" and {name.split("/")[1] for name in ours_alone} == extra
    assert [name for name in mine.column_names if name in reference.column_names] == reference.column_names
    for name in reference.column_names:
        assert mine.schema.field(name).type == reference.schema.field(name).type, name
        if not name.startswith("stats/"):
            assert mine[name].to_pylist() == reference[name].to_pylist(), name

    mine, reference = (json.loads((root / "meta/stats.json").read_text()) for root in (ours, theirs))
    for name in reference:
        exact = ("min", "max", "mean", "count") if "images" in name else ("min", "max", "mean", "std", "count")  # its image std overflows uint8
        for key in () if name == "action" else exact:
            np.testing.assert_allclose(mine[name][key], reference[name][key], rtol=1e-6, err_msg=f"{name} {key}")
        assert {key: np.shape(value) for key, value in mine[name].items()} == {key: np.shape(value) for key, value in reference[name].items()}


@needs_fixture
def test_reads_the_videos_that_lerobot_wrote():
    expected = np.load(FIXTURE / "video_expected.npz")
    episodes = read_dataset(FIXTURE / "video")
    frames = {name: np.concatenate([episode.frames[name] for episode in episodes]) for name in episodes[0].frames}
    assert set(frames) == {"image", "wrist_image"}
    for number in expected["indices"]:
        for name, found in frames.items():
            wanted = expected[f"{number}/observation.images.{name}"].transpose(1, 2, 0).astype(int)
            assert np.abs(found[number] - wanted).max() <= 3, (number, name)


def test_foreign_success_is_made_cumulative(written, episodes, tmp_path):
    """Other writers mark single rows; `success` says so far."""
    folder = copied(written, tmp_path)
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    marked = np.zeros(len(table), dtype=bool)
    marked[8 + 3] = True  # third of the ten rows of episode 2, action 3 achieves it
    pq.write_table(table.set_column(table.schema.get_field_index("next.success"), "next.success", pa.array(marked)), path)
    assert read_dataset(folder)[2].success.tolist() == [False] * 4 + [True] * 6


def test_files_may_be_links_as_in_the_hub_cache(written, episodes, tmp_path):
    blobs, snapshot = tmp_path / "datasets--a--b/blobs", tmp_path / "datasets--a--b/snapshots/0123"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in written.rglob("*") if path.is_file())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(written)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    assert_same(read_dataset(snapshot), episodes)
