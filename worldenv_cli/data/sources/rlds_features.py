"""What features.json says of the steps of an RLDS dataset: a flat list of names, each numbers, pictures or text, and how a record holds them."""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UserError
from .tfrecord import Values

LARGEST_JSON = 2**26  # bytes
FLOATS = ("float16", "float32", "float64", "bfloat16")
INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
ADVICE = "is features.json of another version of the data?"


@dataclass(frozen=True)
class Feature:
    kind: str  # "numbers", "picture", "text" or "other"
    shape: tuple[int | None, ...]  # of one step; None where it can change
    dtype: str
    encoding: str = "none"

    @property
    def width(self) -> int | None:
        """How many numbers a step has; None where that can change."""
        return None if None in self.shape else math.prod(self.shape)


def step_features(folder: Path) -> dict[str, Feature]:
    """{path within a step, such as observation/image: what it is}"""
    path = folder / "features.json"
    if path.stat().st_size > LARGEST_JSON:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes, expected a description of the data's features; {ADVICE}")
    try:
        step = json.loads(path.read_bytes())["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
        found = dict(_flat(step, ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: not the features of an RLDS dataset ({type(error).__name__}: {error}); expected steps with an observation"
        ) from error
    if not any(name.startswith("observation/") for name in found):
        raise UserError(f"{path}: steps without an observation, found {sorted(found)[:12]}; is it an RLDS dataset?")
    return found


def _flat(features: dict, prefix: str):
    for name, feature in features.items():
        inner = feature.get("featuresDict")
        if inner is not None:
            yield from _flat(inner["features"], f"{prefix}{name}/")
        else:
            yield prefix + name, _feature(feature)


def _feature(found: dict) -> Feature:
    """Of a feature that is no dictionary; what is not understood is an error only where it is asked for."""
    kind, content = next(
        ((kind, found[kind]) for kind in ("tensor", "image", "text", "classLabel") if isinstance(found.get(kind), dict)), ("other", {})
    )
    dtype = str(content.get("dtype", {"classLabel": "int64", "image": "uint8"}.get(kind, "")))
    if kind == "text" or (kind == "tensor" and dtype in ("string", "object")):
        return Feature("text", (), "string")
    shape = _shape(content.get("shape", {}))
    if shape is None or kind == "other" or (kind == "tensor" and dtype not in FLOATS + INTEGERS):
        return Feature("other", (None,), dtype)
    return Feature("picture" if kind == "image" else "numbers", shape, dtype, str(content.get("encoding", "none")).lower())


def _shape(found) -> tuple[int | None, ...] | None:
    """Sizes are strings in the file, -1 where they can change; None where they are no sizes."""
    dimensions = found.get("dimensions", []) if isinstance(found, dict) else None
    try:
        sizes = [int(size) for size in dimensions]
    except (TypeError, ValueError):
        return None
    return tuple(size if size > 0 else None for size in sizes)


def numbers(values: Values | None, feature: Feature, where: str) -> np.ndarray:
    """(T, width) of one feature of a record."""
    width = feature.width
    if width is None:
        raise UserError(f"{where}: shape {list(feature.shape)}, whose size can change from step to step, expected a fixed one; choose another")
    if isinstance(values, list) and values and feature.encoding in ("bytes", "zlib"):
        return np.stack([_unpacked(data, feature, width, where) for data in values])
    expected = "floats" if feature.dtype in FLOATS else "integers"
    found = (
        "none" if values is None or not len(values) else "bytes" if isinstance(values, list) else "floats" if values.dtype.kind == "f" else "integers"
    )
    if found != expected:
        raise UserError(f"{where}: {found}, expected {expected} as features.json says ({feature.dtype}); {ADVICE}")
    if len(values) % width:
        raise UserError(f"{where}: {len(values)} numbers, expected {width} for each step; leave it out, or {ADVICE}")
    return values.reshape(-1, width)


def _unpacked(data: bytes, feature: Feature, width: int, where: str) -> np.ndarray:
    """One step's tensor that was stored as bytes, or as such in zlib's format."""
    itemsize = 2 if feature.dtype == "bfloat16" else np.dtype(feature.dtype).itemsize
    if feature.encoding == "zlib":
        stream = zlib.decompressobj()
        try:
            data = stream.decompress(data, width * itemsize + 1)
        except (zlib.error, OverflowError) as error:
            raise UserError(f"{where}: not in zlib's format ({error}); {ADVICE}") from error
    if len(data) != width * itemsize:
        raise UserError(f"{where}: {len(data)} bytes for a step, expected {width * itemsize}; {ADVICE}")
    if feature.dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(feature.dtype).newbyteorder("<"))
