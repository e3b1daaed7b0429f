"""Small files in other projects' formats, whole and broken, for the tests of ingestion."""

import io
import json
import struct
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from worldenv_cli.data.sources.tfrecord import crc32c

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
CONTROLLER = {"type": "OSC_POSE", "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]}


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.9, 0.9, shape)


def frames(seed: int, count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def libero_file(path: Path, lengths=(6, 4), **changed) -> Path:
    """`changed` replaces a dataset of every demonstration by name; None leaves it out."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "the scene file's words"})
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20, "controller_configs": CONTROLLER}})
        for number, steps in enumerate(lengths):
            actions = numbers(number, steps, 7)
            actions[:, 6] = -1
            arrays = {
                "actions": actions,
                "obs/agentview_rgb": frames(number, steps),
                "obs/eye_in_hand_rgb": frames(100 + number, steps),
                "obs/ee_states": numbers(number, steps, 6),
                "obs/gripper_states": numbers(number, steps, 2),
            } | changed
            for name, values in arrays.items():
                if values is not None:
                    data[f"demo_{number}/{name}"] = values(steps) if callable(values) else values
    return path


def robomimic_file(path: Path, lengths=(6, 4), **changed) -> Path:
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "env_kwargs": {"robots": ["Panda"], "control_freq": 20, "controller_configs": CONTROLLER}}
        )
        for number, steps in enumerate(lengths, 1):
            pictures, pose = frames(number, steps + 1), numbers(number, steps + 1, 3)
            arrays = {"actions": numbers(number, steps, 7), "rewards": np.r_[np.zeros(steps - 1), 1.0] if steps else np.zeros(0)}
            for group, part in (("obs", slice(None, -1)), ("next_obs", slice(1, None))):
                arrays |= {f"{group}/agentview_image": pictures[part], f"{group}/robot0_eef_pos": pose[part]}
                arrays |= {f"{group}/robot0_eef_quat": numbers(0, steps, 4), f"{group}/robot0_gripper_qpos": numbers(0, steps, 2)}
            for name, values in (arrays | changed).items():
                if values is not None:
                    data[f"demo_{number}/{name}"] = values(steps) if callable(values) else values
        file["mask/train"] = np.array([b"demo_1"])
    return path


def png(frame: np.ndarray, format: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(frame).save(data, format=format)
    return data.getvalue()


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    number &= 2**64 - 1
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def example(entries: dict) -> bytes:
    """A serialised tf.train.Example of lists of bytes, float arrays and integer arrays."""
    features = b""
    for name, values in entries.items():
        if isinstance(values, list):
            feature = _field(1, b"".join(_field(1, value) for value in values))
        elif values.dtype.kind == "f":
            feature = _field(2, _field(1, values.astype("<f4").tobytes()))
        else:
            feature = _field(3, _field(1, b"".join(_varint(int(value)) for value in values)))
        features += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, features)


def record(body: bytes) -> bytes:
    def masked(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(body))
    return length + masked(length) + body + masked(body)


def _tensor(*shape: int) -> dict:
    return {"tensor": {"dtype": "float32", "shape": {"dimensions": [str(size) for size in shape]}}}


def rlds_folder(path: Path, lengths=(6, 4), **changed) -> Path:
    """`changed` replaces an entry of every record by name; None leaves it out."""
    folder = path / "1.0.0"
    folder.mkdir(parents=True)
    picture = {"image": {"shape": {"dimensions": ["16", "16", "3"]}, "encodingFormat": "jpeg"}}
    observation = {"featuresDict": {"features": {"image": picture, "state": _tensor(8)}}}
    step = {"featuresDict": {"features": {"action": _tensor(7), "observation": observation, "language_instruction": {"text": {}}}}}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": {"steps": {"sequence": {"feature": step}}}}}))
    body = b""
    for number, steps in enumerate(lengths):
        entries = {
            "steps/action": numbers(number, steps * 7),
            "steps/observation/state": numbers(number, steps * 8),
            "steps/observation/image": [png(frame, "JPEG") for frame in frames(number, steps)],
            "steps/language_instruction": [b"open it"] * steps,
            "steps/reward": np.r_[np.zeros(steps - 1), 1.0],
        } | {name: value(steps) if callable(value) else value for name, value in changed.items()}
        body += record(example({name: values for name, values in entries.items() if values is not None}))
    (folder / "set-train.tfrecord-00000-of-00001").write_bytes(body)
    return path


def lerobot_folder(path: Path, lengths=(6, 4), version: str = "v2.1", video: bool = False, **changed) -> Path:
    """A v2.x set; `changed` replaces columns by name (a function of the number of rows), or keys of info.json under `info`."""
    (path / "meta").mkdir(parents=True)
    camera = {"dtype": "video" if video else "image", "shape": [16, 16, 3], "names": ["height", "width", "channel"]}
    features = {
        "observation.images.front": camera,
        "observation.state": {"dtype": "float32", "shape": [3], "names": ["a", "b", "c"]},
        "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["m0", "m1"]}},
    }
    info = {
        "codebase_version": version,
        "fps": 10,
        "robot_type": "so100",
        "features": features,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    } | changed.pop("info", {})
    (path / "meta/info.json").write_text(json.dumps(info))
    tasks = changed.pop("tasks", ["pick it"])
    rows = [{"episode_index": i, "tasks": tasks, "length": steps} for i, steps in enumerate(lengths)]
    (path / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "data/chunk-000").mkdir(parents=True)
    for index, steps in enumerate(lengths):
        columns = {
            "observation.state": numbers(index, steps, 3).astype(np.float32).tolist(),
            "action": numbers(index, steps, 2).astype(np.float32).tolist(),
            "timestamp": (np.arange(steps) / 10).astype(np.float32),
            "episode_index": np.full(steps, index),
        }
        if video:
            film(path / f"videos/chunk-000/observation.images.front/episode_{index:06d}.mp4", frames(index, steps))
        else:
            columns["observation.images.front"] = [{"bytes": png(frame), "path": None} for frame in frames(index, steps)]
        columns |= {name: value(steps) for name, value in changed.items()}
        pq.write_table(pa.table(columns), path / f"data/chunk-000/episode_{index:06d}.parquet")
    return path


def film(path: Path, pictures: np.ndarray, fps: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "1", "g": "2"})
        stream.height, stream.width = pictures.shape[1:3]
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
