"""The files that hold a checkpoint's weights: safetensors in shards, pickled heads that become safetensors once, a LoRA adapter."""

import hashlib
import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants
from torch import Tensor

from ...atomic import disk_full_told, is_disk_full, opened, read_json, read_tensors
from ...errors import UserError

AGAIN = "download the checkpoint again"
Shapes = dict[str, tuple[int, ...]]


def shard_paths(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights. Raises UserError where one is not there."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index} has no weight_map, expected the file of every tensor there; {AGAIN}") from error
    climbing = [name for name in names if Path(str(name)).name != name]
    if climbing:
        raise UserError(f"{index}: names {climbing[0]!r}, expected files beside it; do not trust this checkpoint")
    missing = [str(name) for name in names if not (folder / str(name)).is_file()]
    if missing:
        raise UserError(f"{folder}: {', '.join(missing)} missing, expected the weights there; {AGAIN}")
    return [folder / name for name in names]


def tensor_shapes(paths: list[Path]) -> Shapes:
    shapes = {}
    for path in paths:
        with opened(path) as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    return shapes


def read_shards(paths: list[Path], wanted: set[str], dtype: torch.dtype, change: dict[str, tuple[Tensor, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The wanted tensors of one file after the other, as `dtype`, in memory of their own.

    `change` {name: (scaled B, A)} is added to a tensor before it is rounded.
    """
    for path in paths:
        with opened(path) as file:
            tensors = {}
            for name in wanted.intersection(file.keys()):
                tensor = file.get_tensor(name)
                if name in change:
                    tensor = tensor.float() + change[name][0] @ change[name][1]
                tensors[name] = tensor.to(dtype, copy=True)
        yield tensors


def head_tensors(folder: Path, name: str) -> dict[str, Tensor] | None:
    """Tensors of `<name>--<step>_checkpoint.pt`, None where there is no such file.

    The .pt is a pickle: it is read once, as plain tensors only, and kept as safetensors, beside it or in a cache under its hash.
    """
    stems = sorted({path.stem for suffix in ("pt", "safetensors") for path in folder.glob(f"{name}--*_checkpoint.{suffix}")})
    if not stems:
        return None
    if len(stems) > 1:
        raise UserError(f"{folder}: {', '.join(stems)}: expected one {name}; move the others away")
    original = folder / f"{stems[0]}.pt"
    beside = original.with_suffix(".safetensors")
    if not original.is_file():
        return read_tensors(beside)
    with original.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cached = Path(constants.HF_HOME) / "worldenv" / f"{digest}.safetensors"
    for path in (beside, cached):
        if path.is_file() and _made_of(path) == digest:
            return read_tensors(path)
    tensors = _unpickled(original)
    with disk_full_told(cached):
        if not (folder.stat().st_mode & 0o222 and _kept(tensors, beside, digest)):  # root may write anywhere, but is not asked to
            _kept(tensors, cached, digest)
    return tensors


def _unpickled(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than plain tensors, or is damaged: it is not loaded; {AGAIN}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is truncated or damaged ({str(error).splitlines()[0]}): download it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} holds {type(tensors).__name__}, expected tensors by name; {AGAIN}")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _kept(tensors: dict[str, Tensor], path: Path, digest: str) -> bool:
    """Write safetensors that appear whole; False where that is not allowed."""
    from safetensors.torch import save_file

    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        if is_disk_full(error):
            raise
        return False
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, {"sha256": digest})
        partial.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return True


def _made_of(path: Path) -> str | None:
    """The hash of the .pt that was converted; None for a file that says nothing or is damaged."""
    try:
        with opened(path) as file:
            return (file.metadata() or {}).get("sha256")
    except UserError:
        return None


def adapter_changes(folder: Path, shapes: Shapes) -> dict[str, tuple[Tensor, Tensor]]:
    """{tensor: (scaled B, A)} of lora_adapter/ in peft's layout."""
    path = folder / "lora_adapter"
    if not (path / "adapter_config.json").is_file() or not (path / "adapter_model.safetensors").is_file():
        raise UserError(f"{path}: adapter_config.json or adapter_model.safetensors is missing, expected a peft adapter; {AGAIN}, or leave it out")
    config, tensors = read_json(path / "adapter_config.json"), read_tensors(path / "adapter_model.safetensors")
    if odd := [name for name in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out") if config.get(name)]:
        raise UserError(f"{path / 'adapter_config.json'}: {', '.join(odd)} set, expected plain LoRA; merge it with peft instead")
    rank = config.get("r", 8)
    scale = config.get("lora_alpha", 8) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    change, unknown = {}, set(tensors)
    for name, (rows, *columns) in shapes.items():
        halves = [f"base_model.model.{name.removesuffix('.weight')}.lora_{half}.weight" for half in "AB"]
        if not unknown.issuperset(halves) or len(columns) != 1:
            continue
        a, b = (tensors[half] for half in halves)
        if (b.shape, a.shape) == ((rows, rank), (rank, columns[0])):
            change[name] = (scale * b.float(), a.float())
            unknown -= set(halves)
    if unknown or not change:
        listed = ", ".join(sorted(unknown)) or "nothing"
        raise UserError(f"{path / 'adapter_model.safetensors'}: {listed}: expected A and B of rank {rank} for tensors of this checkpoint; {AGAIN}")
    return change
