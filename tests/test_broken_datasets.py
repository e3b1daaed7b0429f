"""What is wrong with a dataset is told in terms of files and episodes, when it is written and when it is read."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from random_dataset import copied, make_episode, several, write

from worldenv_cli.data.dataset import Episode, read_dataset, read_description
from worldenv_cli.errors import UserError


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("dataset") / "set", several())


def changed(episode: Episode, **values) -> Episode:
    return dataclasses.replace(episode, **values)


def poisoned(values: np.ndarray, value: float) -> np.ndarray:
    values = values.copy()
    values[2, 1] = value
    return values


GOOD = make_episode(7)
BAD_EPISODES = {
    "no actions": (changed(GOOD, actions=GOOD.actions[:0]), r"episode 1: no actions, expected one at least"),
    "nan state": (changed(GOOD, states=poisoned(GOOD.states, np.nan)), r"episode 1, observation.state: nan in row 2, number 1"),
    "infinite action": (changed(GOOD, actions=poisoned(GOOD.actions, np.inf)), r"episode 1, action: inf in row 2, number 1"),
    "large action": (changed(GOOD, actions=poisoned(GOOD.actions, -1.5)), r"episode 1, action: .* 1.5, expected \[-1, 1\]"),
    "states": (changed(GOOD, states=GOOD.states[:, :2]), r"episode 1, observation.state: shape \(6, 2\), expected \(6, 3\)"),
    "actions": (changed(GOOD, actions=np.zeros((5, 4), np.float32)), r"episode 1, action: shape \(5, 4\), expected \(5, 2\)"),
    "no closing frame": (
        changed(GOOD, frames={name: frames[:-1] for name, frames in GOOD.frames.items()}),
        r"episode 1, observation.images.front: shape \(5, 12, 16, 3\), expected \(6, 12, 16, 3\)",
    ),
    "resolution": (
        make_episode(7, cameras=[("front", 12, 12), ("wrist", 8, 8)]),
        r"front: shape \(6, 12, 12, 3\), expected \(6, 12, 16, 3\)",
    ),
    "cameras": (make_episode(7, cameras=[("front", 12, 16)]), r"episode 1: cameras \['observation.images.front'\], expected \[.*wrist'\]"),
    "float pictures": (
        changed(GOOD, frames={name: frames.astype(np.float32) for name, frames in GOOD.frames.items()}),
        r"episode 1, observation.images.front: pictures of float32, expected uint8",
    ),
    "success length": (changed(GOOD, success=GOOD.success[1:]), r"episode 1, success: shape \(5,\), expected \(6,\)"),
    "success at once": (changed(GOOD, success=np.ones(6, bool)), r"episode 1, success: expected False at the first frame"),
    "success lost": (changed(GOOD, success=np.array([0, 0, 1, 0, 0, 0], bool)), r"episode 1, success: .* no way back from True"),
}


@pytest.mark.parametrize("case", BAD_EPISODES)
def test_bad_episodes_are_refused(case, tmp_path):
    episode, message = BAD_EPISODES[case]
    with pytest.raises(UserError, match=message) as error:
        write(tmp_path / "set", [make_episode(0), episode])
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / "set"))
    assert not (tmp_path / "set/meta/info.json").exists()


def test_bad_writes_are_refused(written, tmp_path):
    with pytest.raises(UserError, match="no episodes to write"):
        write(tmp_path / "set", [])
    with pytest.raises(UserError, match="holds a dataset or part of one, expected none"):
        write(written, [make_episode(0)])
    for fps in (0, float("nan"), "20"):
        with pytest.raises(UserError, match=f"fps is {fps!r}, expected the actions a second"):
            write(tmp_path / "set", [make_episode(0)], fps=fps)
    with pytest.raises(UserError, match="episode 0, observation.state: shape .6, 3., expected .6, 4."):
        write(tmp_path / "set", [make_episode(0)], sizes=(4, 2))
    with pytest.raises(UserError, match="camera 'a/b'"):
        write(tmp_path / "set", [make_episode(0, cameras=[("a/b", 8, 8)])])


def test_missing_things_are_named(written, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"meta/info.json: missing"):
        read_dataset(tmp_path)
    with pytest.raises(UserError, match=r"meta/worldenv.json: missing"):
        read_description(tmp_path)
    for name, told in (("meta/tasks.parquet", ": missing"), ("data/chunk-000/file-000.parquet", " is missing, and no other file holds it")):
        folder = copied(written, tmp_path / name.replace("/", "-"))
        (folder / name).unlink()
        with pytest.raises(UserError, match=name + told):
            read_dataset(folder)
    folder = copied(written, tmp_path / "no-episodes")
    (folder / "meta/episodes/chunk-000/file-000.parquet").unlink()
    with pytest.raises(UserError, match="meta/episodes: 0 episodes, expected 4"):
        read_dataset(folder)


def edit_info(folder: Path, **values) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("version", ["v1.6", "v4.0", None])
def test_other_versions_are_refused(version, written, tmp_path):
    folder = copied(written, tmp_path)
    edit_info(folder, codebase_version=version)
    with pytest.raises(UserError, match=f"codebase_version is {version!r}"):
        read_dataset(folder)


def test_broken_info_is_refused(written, tmp_path):
    folder = copied(written, tmp_path)
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    edit_info(folder, features={name: feature for name, feature in features.items() if name != "action"})
    with pytest.raises(UserError, match="no feature 'action', found"):
        read_dataset(folder)
    edit_info(folder, features=features, total_episodes=5)
    with pytest.raises(UserError, match="4 episodes, expected 5"):
        read_dataset(folder)
    edit_info(
        folder,
        total_episodes=4,
        features=features | {"next.success": features["next.success"], "observation.images.top": features["observation.images.front"]},
    )
    with pytest.raises(UserError, match=r"camera top cannot be read: no column 'observation.images.top' in the data"):
        read_dataset(folder)
    edit_info(folder, features=features | {"observation.images.front": features["observation.images.front"] | {"shape": [16, 12, 3]}})
    with pytest.raises(UserError, match=r"row 0: a picture of 12 x 16, expected 16 x 12 as the source declares it"):
        read_dataset(folder)
    edit_info(folder, features=features | {"action": features["action"] | {"shape": [3]}})
    with pytest.raises(UserError, match=r"action: 2 numbers in row 0, expected \[3\] a row"):
        read_dataset(folder)
    (folder / "meta/info.json").write_text('{"codebase_version": "v3.0", ')
    with pytest.raises(UserError, match="info.json: not JSON"):
        read_dataset(folder)


@pytest.mark.parametrize(
    "template",
    [
        "../data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "data/../../secret-{file_index:03d}.parquet",
        "/etc/passwd",
        "data/{chunk_index.__class__}/file.parquet",
        "..\\data\\file.parquet",
        "C:/data/file.parquet",
        "data/{chunk_index:999999999d}.parquet",
    ],
)
def test_paths_stay_inside_the_folder(template, written, tmp_path):
    folder = copied(written, tmp_path)
    edit_info(folder, data_path=template)
    with pytest.raises(UserError, match="expected a path inside the dataset"):
        read_dataset(folder)


@pytest.mark.parametrize("name", ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"])
@pytest.mark.parametrize("share", [0.0, 0.6, 0.99])
def test_truncated_parquet_is_named(name, share, written, tmp_path):
    folder = copied(written, tmp_path)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=f"{name}: not a whole parquet file .*; copy or download the dataset again") as error:
        read_dataset(folder)
    assert "\n" not in str(error.value)


def rewrite(folder: Path, change) -> None:
    path = folder / "data/chunk-000/file-000.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def replace_column(table: pa.Table, name: str, values: list) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, type=table.schema.field(name).type))


def test_damaged_rows_are_named(written, tmp_path):
    def damaged(case: str, change) -> Path:
        folder = copied(written, tmp_path / case)
        rewrite(folder, change)
        return folder

    with pytest.raises(UserError, match="episode 3: 30 rows, expected 41 as meta/episodes says"):
        read_dataset(damaged("short", lambda table: table.slice(0, len(table) - 11)))
    mixed = read_dataset(damaged("mixed", lambda table: pa.concat_tables([table.slice(3), table.slice(0, 3)])))
    np.testing.assert_array_equal(mixed[0].states, read_dataset(written)[0].states)  # rows say of themselves where they belong
    states = [[0.0, float("nan"), 0.0]] * (6 + 2 + 10 + 41)
    with pytest.raises(UserError, match="episode 0, observation.state: nan in row 0, number 1"):
        read_dataset(damaged("nan", lambda table: replace_column(table, "observation.state", states)))
    with pytest.raises(UserError, match=r"episode 0: task_index \[0, 1\], expected 0 in every row"):
        read_dataset(damaged("tasks", lambda table: replace_column(table, "task_index", [0, 1] + [0] * (len(table) - 2))))
    with pytest.raises(UserError, match=r"episode 0: task_index \[9\], expected 0 in every row"):
        read_dataset(damaged("task", lambda table: replace_column(table, "task_index", [9] * len(table))))


@pytest.mark.parametrize("picture", ["cut", "text", "missing", "gif", "grey"])
def test_damaged_pictures_are_named(picture, written, tmp_path):
    def encoded(mode: str, kind: str) -> bytes:
        data = io.BytesIO()
        Image.new(mode, (16, 12)).save(data, format=kind)
        return data.getvalue()

    def damage(table: pa.Table) -> pa.Table:
        pictures = table["observation.images.front"].to_pylist()
        whole = pictures[8 + 4]["bytes"]
        changes = {
            "cut": whole[: len(whole) // 2],
            "text": b"hello",
            "missing": None,
            "gif": encoded("RGB", "GIF"),
            "grey": encoded("L", "PNG"),
        }
        pictures[8 + 4]["bytes"] = changes[picture]
        return replace_column(table, "observation.images.front", pictures)

    folder = copied(written, tmp_path)
    rewrite(folder, damage)
    if picture == "grey":
        assert not read_dataset(folder)[2].frames["front"][4].any()  # a whole picture, of three equal colours
        return
    told = "front, row 4: not a whole PNG or JPEG picture" if picture != "missing" else "no picture there, though .*episode 2 names it"
    with pytest.raises(UserError, match=told):
        read_dataset(folder)
