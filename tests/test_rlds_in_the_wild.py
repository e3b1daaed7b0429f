"""RLDS datasets as people have them: other names, parts, numbers and splits; and what a small file must not be able to do."""

import gzip
import json
import os
import zlib

import numpy as np
import pytest
from recorded import example, frames, numbers, png, record

from worldenv_cli.data.sources import SourceConfig, detect, open_source
from worldenv_cli.data.sources.tfrecord import _varints, read_record, records
from worldenv_cli.errors import UserError

TEXT = {"text": {}}


def tensor(*shape, dtype="float32", encoding="none"):
    return {"tensor": {"dtype": dtype, "shape": {"dimensions": [str(size) for size in shape]}, "encoding": encoding}}


def image(*shape, dtype="uint8"):
    return {"image": {"dtype": dtype, "shape": {"dimensions": [str(size) for size in shape]}, "encodingFormat": "png"}}


def described(folder, step, observation):
    step = step | {"observation": {"featuresDict": {"features": observation}}}
    steps = {"sequence": {"feature": {"featuresDict": {"features": step}}}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": {"steps": steps}}}))


def entries(number, steps, **changed):
    """A record; `changed` replaces entries by name (a function of the number of steps), None leaves one out."""
    values = {
        "steps/action": numbers(number, steps * 7),
        "steps/observation/state": numbers(number, steps * 3),
        "steps/observation/image": [png(frame) for frame in frames(number, steps)],
        "steps/language_instruction": [b"open it"] * steps,
        "steps/reward": np.r_[np.zeros(steps - 1), 1.0],
    } | {name: value(steps) if callable(value) else value for name, value in changed.items()}
    return {name: value for name, value in values.items() if value is not None}


def shard(folder, examples, split="train", number=0, count=1):
    path = folder / f"set-{split}.tfrecord-{number:05d}-of-{count:05d}"
    path.write_bytes(b"".join(record(example(one)) for one in examples))
    return path


def foreign(path, lengths=(6, 4), step=None, observation=None, version="1.0.0", **changed):
    folder = path / version
    told = {"action": tensor(7), "reward": tensor(), "language_instruction": TEXT} | (step or {})
    seen = {"image": image(16, 16, 3), "state": tensor(3)} | (observation or {})
    described(folder, *({name: value for name, value in features.items() if value is not None} for features in (told, seen)))
    shard(folder, [entries(number, steps, **changed) for number, steps in enumerate(lengths)])
    return path


def opened(path, **config):
    return open_source(path, SourceConfig(**config))


def episodes(source):
    return [source.read(listed, tuple(source.cameras)) for listed in source.episodes]


def refused(path, words, **config):
    with pytest.raises(UserError, match=words) as error:
        episodes(opened(path, **config))
    assert "\n" not in str(error.value) and "drop the" not in str(error.value)


# Facts


def test_what_is_not_recorded_is_unknown(tmp_path):
    source = opened(foreign(tmp_path / "fractal"))
    assert (source.control_hz, source.robot, source.gripper, source.limits) == (None, None, None, None)
    assert (
        source.cameras == {"image": {"orientation": None, "size": [16, 16]}}
        and source.action_names[0] == "action_0"
        and source.action["unit"] is None
    )
    first = episodes(source)[0]
    np.testing.assert_array_equal(first.last_action, numbers(0, 42).astype(np.float32)[-7:])
    assert first.actions.shape == (5, 7) and opened(tmp_path / "fractal", control_hz=3).control_hz == 3


def test_libero_s_sets_are_known_by_name_and_content(tmp_path):
    seen = {"wrist_image": image(16, 16, 3), "state": tensor(8)}
    more = {"steps/observation/wrist_image": lambda n: [png(frame) for frame in frames(9, n)], "steps/observation/state": lambda n: numbers(n, n * 8)}
    source = opened(foreign(tmp_path / "libero_goal_no_noops", observation=seen, **more))
    assert (source.control_hz, source.robot, source.gripper, source.action_names[0]) == (20, "panda", {"dimension": 6, "closes": 1}, "dx")
    assert "mirrored" in source.cameras["image"]["orientation"] and source.limits == ([-1.0] * 7, [1.0] * 7)
    assert opened(foreign(tmp_path / "bridge", observation=seen, **more)).robot is None
    assert opened(foreign(tmp_path / "libero_mine")).robot is None


@pytest.mark.parametrize(
    "place", ["natural_language_instruction", "observation/natural_language_instruction", "observation/language_instruction", "observation/task"]
)
def test_instructions_lie_in_many_places(tmp_path, place):
    step = {"language_instruction": None} | ({} if "/" in place else {place: TEXT})
    seen = {place.rpartition("/")[2]: TEXT} if "/" in place else {}
    source = opened(
        foreign(
            tmp_path / "set", step=step, observation=seen, **{"steps/language_instruction": None, f"steps/{place}": lambda n: [b"pick %d" % n] * n}
        )
    )
    assert [listed.instruction for listed in source.episodes] == ["pick 6", "pick 4"]


def test_several_instructions_and_those_that_are_no_text(tmp_path):
    several = opened(foreign(tmp_path / "a", **{"steps/language_instruction": lambda n: [b"open it"] * (n - 1) + [b"close it"]}))
    assert several.episodes[0].instruction == "" and "2 instructions in one episode" in several.episodes[0].problem
    wrong = opened(foreign(tmp_path / "b", **{"steps/language_instruction": lambda n: [b"\xff\xfe"] * n}))
    assert wrong.episodes[0].instruction == "" and "UTF-8" in wrong.episodes[0].problem
    assert opened(tmp_path / "b", instruction="lift").episodes[0].instruction == "lift"
    empty = opened(foreign(tmp_path / "c", **{"steps/language_instruction": lambda n: [b""] * n}))
    assert empty.episodes[0].instruction == "" and empty.episodes[0].problem == ""


def test_rewards(tmp_path):
    def outcomes(name, reward, **config):
        source = opened(foreign(tmp_path / name, **{"steps/reward": reward}), **config)
        return [episode.outcome for episode in episodes(source)], source.outcome

    early = opened(foreign(tmp_path / "early", **{"steps/reward": lambda n: np.eye(n)[2]}))
    assert episodes(early)[0].success.tolist() == [False, False, False, True, True, True]
    assert outcomes("some", lambda n: np.full(n, float(n == 4)))[0] == ["failure", "success"]
    zeros, told = outcomes("zeros", np.zeros)
    assert zeros == ["unknown"] * 2 and "0 everywhere" in told
    assert outcomes("none", None)[0] == ["unknown"] * 2 and outcomes("shaped", lambda n: np.linspace(0.1, 1, n))[0] == ["unknown"] * 2
    refused(foreign(tmp_path / "nan", **{"steps/reward": lambda n: np.full(n, np.nan) if n == 4 else np.ones(n)}), "episode 1, reward: nan in row 0")
    refused(foreign(tmp_path / "text", **{"steps/reward": lambda n: [b"good"] * n}), "episode 0, reward: text")
    flagged = foreign(tmp_path / "flag", step={"solved": tensor(dtype="bool")}, **{"steps/solved": lambda n: np.full(n, int(n == 6))})
    assert [episode.outcome for episode in episodes(opened(flagged, success="solved"))] == ["success", "failure"]
    refused(flagged, "--success wings: no such column", success="wings")


# Numbers of other kinds


def test_actions_beyond_one_are_as_recorded(tmp_path):
    source = opened(foreign(tmp_path / "set", **{"steps/action": lambda n: 300 * numbers(n, n * 7)}))
    np.testing.assert_array_equal(episodes(source)[0].actions.ravel(), (300 * numbers(6, 42)).astype(np.float32)[:-7])
    assert source.limits is None


def test_actions_in_parts(tmp_path):
    parts = {
        "action": {"featuresDict": {"features": {"world_vector": tensor(3), "open_gripper": tensor(dtype="bool"), "mode": tensor(2, dtype="int32")}}}
    }
    more = {
        "steps/action": None,
        "steps/action/world_vector": lambda n: numbers(1, n * 3),
        "steps/action/open_gripper": lambda n: np.arange(n) % 2,
        "steps/action/mode": lambda n: np.arange(2 * n) - 3,
    }
    path = foreign(tmp_path / "set", step=parts, **more)
    refused(path, "it has parts: --action world_vector,open_gripper,mode")
    for prefix in ("", "action/"):
        source = opened(path, action=",".join(prefix + name for name in ("world_vector", "open_gripper", "mode")))
        expected = np.c_[numbers(1, 18).reshape(6, 3), np.arange(6) % 2, (np.arange(12) - 3).reshape(6, 2)]
        np.testing.assert_allclose(episodes(source)[0].actions, expected[:-1].astype(np.float32))
        assert source.action_names == ["world_vector_0", "world_vector_1", "world_vector_2", "open_gripper_0", "mode_0", "mode_1"]


@pytest.mark.parametrize("encoding", ["bytes", "zlib"])
def test_numbers_that_are_stored_as_bytes(tmp_path, encoding):
    values = numbers(3, 6, 3).astype("<f4")
    packed = [row.tobytes() if encoding == "bytes" else zlib.compress(row.tobytes()) for row in values]
    path = foreign(tmp_path / "set", lengths=(6,), observation={"state": tensor(3, encoding=encoding)}, **{"steps/observation/state": packed})
    np.testing.assert_array_equal(episodes(opened(path))[0].states, values)
    bomb = [zlib.compress(bytes(10**7))] * 6
    refused(
        foreign(tmp_path / "bomb", lengths=(6,), observation={"state": tensor(3, encoding=encoding)}, **{"steps/observation/state": bomb}),
        "bytes for a step, expected 12",
    )


def test_numbers_of_sixteen_bits(tmp_path):
    halves = (np.array([[1.5, -2.0, 0.25]] * 6, np.float32).view(np.uint32) >> 16).astype("<u2")
    path = foreign(
        tmp_path / "set",
        lengths=(6,),
        observation={"state": tensor(3, dtype="bfloat16", encoding="bytes")},
        **{"steps/observation/state": [row.tobytes() for row in halves]},
    )
    assert episodes(opened(path))[0].states[0].tolist() == [1.5, -2.0, 0.25]


def test_the_state_can_be_chosen(tmp_path):
    path = foreign(
        tmp_path / "set",
        observation={"state": None, "pose": tensor(2), "gripper": tensor()},
        **{
            "steps/observation/state": None,
            "steps/observation/pose": lambda n: numbers(1, 2 * n),
            "steps/observation/gripper": lambda n: numbers(2, n),
        },
    )
    refused(path, r"no numbers called 'state', found action \[7\], observation/gripper")
    source = opened(path, state=["pose", "gripper"])
    assert source.state_names == ["pose_0", "pose_1", "gripper_0"] and episodes(source)[1].states.shape == (4, 3)


# Pictures


def test_pictures_of_other_kinds(tmp_path):
    shown = frames(1, 6)
    seen = {
        "images": {"featuresDict": {"features": {"front": image(16, 16, 3)}}},
        "any_size": image(-1, -1, 3),
        "grey": image(16, 16, 1),
        "pixels": tensor(16, 16, 3, dtype="uint8"),
        "depth": image(16, 16, 1, dtype="uint16"),
        "far": image(16, 16, 1, dtype="float32"),
    }
    more = {
        "steps/observation/images/front": [png(frame) for frame in shown],
        "steps/observation/any_size": [png(frame[:8]) for frame in shown],
        "steps/observation/grey": [png(frame[..., 0]) for frame in shown],
        "steps/observation/pixels": shown.ravel().astype(np.int64),
        "steps/outside": [png(frame) for frame in shown],
    }
    source = opened(foreign(tmp_path / "set", lengths=(6,), observation=seen, step={"outside": image(16, 16, 3)}, **more))
    assert set(source.cameras) == {"image", "front", "any_size", "grey", "pixels", "outside"} and not source.unusable_cameras
    assert source.cameras["any_size"]["size"] == [8, 16] and {note.partition(" ")[0] for note in source.notes if "left aside" in note} == {
        "depth",
        "far",
    }
    (episode,) = episodes(source)
    for camera, expected in {
        "front": shown,
        "any_size": shown[:, :8],
        "grey": np.repeat(shown[..., :1], 3, 3),
        "pixels": shown,
        "outside": shown,
    }.items():
        np.testing.assert_array_equal(episode.frames[camera], expected)
    assert list(source.read(source.episodes[0], ("front",)).frames) == ["front"]


def test_no_pictures(tmp_path):
    refused(foreign(tmp_path / "set", observation={"image": None}, **{"steps/observation/image": None}), "no pictures in it")


# Folders, splits and shards


def test_versions_splits_and_shards(tmp_path):
    path = foreign(tmp_path / "set", version="1.9.0")
    foreign(path, version="1.10.0", lengths=(3,))
    foreign(path, version="2.0.0.incompleteABC", lengths=(2,))
    source = opened(path)
    assert source.path.name == "1.10.0" and len(source.episodes) == 1 and any("newest of 2" in note for note in source.notes)
    folder = path / "1.9.0"
    shard(folder, [entries(7, 5)], split="val", number=2, count=4)
    (folder / "._set-train.tfrecord-00000-of-00001").write_bytes(b"Mac OS X")
    (folder / "set-train.tfrecord-00000-of-00001.tmp").write_bytes(b"unfinished")
    both = opened(folder)
    assert (
        len(both.episodes) == 3
        and any("splits train and val" in note for note in both.notes)
        and any("1 of 4 shards of the split val" in note for note in both.notes)
    )
    assert [listed.steps for listed in opened(folder, filter_key="val").episodes] == [5]
    refused(folder, r"no split 'test', found \['train', 'val'\]", filter_key="test")
    assert detect(tmp_path) == "rlds"
    foreign(tmp_path / "other")
    refused(tmp_path, "several datasets")


def test_a_shard_that_ends_between_two_episodes_is_told(tmp_path):
    path = foreign(tmp_path / "set")
    told = {"splits": [{"name": "train", "shardLengths": ["3"]}]}
    (path / "1.0.0/dataset_info.json").write_text(json.dumps(told))
    assert any("2 of the 3 episodes" in note for note in opened(path).notes)
    for text in ("[]", '{"splits": 3}', "x", '{"splits": [{"name": "train", "shardLengths": ["x"]}]}'):
        (path / "1.0.0/dataset_info.json").write_text(text)
        assert len(opened(path).episodes) == 2


@pytest.mark.parametrize("pack, kind", [(gzip.compress, "gzip"), (zlib.compress, "zlib")])
def test_packed_shards_are_told(tmp_path, pack, kind):
    path = foreign(tmp_path / "set")
    file = next(path.glob("*/*.tfrecord*"))
    file.write_bytes(pack(file.read_bytes()))
    refused(path, f"compressed as a whole .{kind}.*unpack the shards first")


def test_other_containers_and_no_files(tmp_path):
    path = foreign(tmp_path / "set")
    file = next(path.glob("*/*.tfrecord*"))
    file.unlink()
    (file.parent / "set-train.array_record-00000-of-00001").write_bytes(b"x")
    refused(path, "array_record.*file_format='tfrecord'")
    os.mkfifo(file)
    refused(path, "not a file")


def test_skip_bad_leaves_out_what_cannot_be_listed(tmp_path):
    path = foreign(tmp_path / "set", lengths=(6, 5, 4))
    file = next(path.glob("*/*.tfrecord*"))
    places = list(records(file))
    data = bytearray(file.read_bytes())
    data[places[1][0] + 50] ^= 1
    file.write_bytes(data[: places[2][0] + 20])
    refused(path, "damaged")
    source = opened(path, skip_bad=True)
    assert [listed.name.rpartition(": ")[2] for listed in source.episodes] == ["episode 0"]
    assert len(source.unusable) == 2 and "checksum" in source.unusable[0] and "but the file ends" in source.unusable[1]


# What a small file must not be able to do


@pytest.mark.parametrize("shape", [(2**60,), (2**40, 2**40), (3, 2**62), (-1,), (0,)])
def test_sizes_beyond_any_file(tmp_path, shape):
    for step, seen in (({"action": tensor(*shape)}, {}), ({}, {"state": tensor(*shape)})):
        path = foreign(tmp_path / f"{'action' if step else 'state'}", step=step, observation=seen)
        refused(path, "numbers, expected|expected a fixed size")


def test_pictures_are_measured_first(tmp_path):
    refused(foreign(tmp_path / "a", observation={"image": image(2**40, 2**40, 3)}), "no pictures in it")
    big = png(np.zeros((8192, 8192, 3), np.uint8))
    path = foreign(tmp_path / "b", lengths=(12,), observation={"image": image(8192, 8192, 3)}, **{"steps/observation/image": [big[:20000]] * 12})
    refused(path, "would unpack")


@pytest.mark.parametrize(
    "name, values, words",
    [
        ("steps/observation/state", lambda n: numbers(0, n * 3 - 1), "17 numbers, expected 3 for each step"),
        ("steps/observation/state", lambda n: numbers(0, n * 3 - 3), "5 rows for 6 steps"),
        ("steps/observation/state", lambda n: np.arange(n * 3), "integers, expected floats"),
        ("steps/action", lambda n: numbers(0, (n - 1) * 7), "rows for 5 steps"),
        ("steps/action", lambda n: [b"up"] * n, "bytes, expected floats"),
        ("steps/is_first", lambda n: np.zeros(n - 1, int), "is_first: 5 rows for 6 steps"),
        ("steps/language_instruction", lambda n: [b"open it"] * (n + 1), "language_instruction: 7 rows"),
        ("steps/observation/image", lambda n: [png(frame) for frame in frames(0, n - 1)], "5 pictures for 6 steps"),
        ("steps/observation/image", lambda n: numbers(0, n), "0 pictures for 6 steps"),
    ],
)
def test_steps_that_are_missing_are_an_error_of_their_episode(tmp_path, name, values, words):
    refused(foreign(tmp_path / "set", lengths=(6,), **{name: values}), f"episode 0.*{words}")


def test_integers_of_a_record():
    values = [0, 1, 127, 128, 300, 2**31, 2**62, -1, -5, 2**63 - 1]
    packed = b"".join(_one(value) for value in values)
    assert _varints(packed).tolist() == values and _varints(b"").tolist() == []
    for wrong in (b"\x80", b"\x80" * 11 + b"\x01"):
        with pytest.raises(ValueError):
            _varints(wrong)


def _one(number):
    number &= 2**64 - 1
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize(
    "body",
    [b"\x0a\x02\x0a\x00", b"\x0a\x04\x0a\x02\x0a\x00", b"\x0a\x05\x0a\x03\x0a\x01\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x80" * 12, b"\x0a\x01"],
)
def test_records_that_are_no_examples(tmp_path, body):
    file = tmp_path / "x"
    file.write_bytes(record(body))
    try:
        read_record(file, *next(records(file)))
    except UserError as error:
        assert "no tf.train.Example" in str(error)


def test_features_that_are_none(tmp_path):
    path = foreign(tmp_path / "set")
    features = path / "1.0.0/features.json"
    for text in ("", "[]", "3", "[" * 100_000, '{"featuresDict": {"features": {"steps": []}}}', "\udcff"):
        features.write_bytes(text.encode("utf-8", "surrogateescape"))
        refused(path, "not the features of an RLDS dataset")
