"""The files of OpenVLA-OFT that are its own: weights with an adapter put on, pickled heads that become safetensors once, a LoRA adapter."""

import hashlib
import math
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants
from torch import Tensor

from ...atomic import disk_full_told, is_disk_full, opened, read_json, read_tensors
from ...confine import inside
from ...errors import UserError
from ...hub import downloaded, told
from ..shards import Stored, checked, tensors_in

Shapes = dict[str, tuple[int, ...]]


def read_shards(stored: Stored, wanted: set[str], dtype: torch.dtype, change: dict[str, tuple[Tensor, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The wanted tensors of one file after the other, as `dtype`, in memory of their own.

    `change` {name: (scaled B, A)} is added to a tensor before it is rounded.
    """
    for path in sorted({path for path, _ in stored.values()}):
        tensors = {}
        for name, tensor in tensors_in(path, wanted):
            if name in change:
                tensor = tensor.float() + change[name][0] @ change[name][1]
            tensors[name] = tensor.to(dtype, copy=True)
        yield tensors


def head_file(folder: Path, name: str) -> Path | None:
    """`<name>--<step>_checkpoint.pt`, or the safetensors that it was converted to where that is all there is; None where there is neither."""
    stems = sorted({path.stem for suffix in ("pt", "safetensors") for path in folder.glob(f"{name}--*_checkpoint.{suffix}")})
    if not stems:
        return None
    if len(stems) > 1:
        raise UserError(f"{folder}: {', '.join(stems)}: expected one {name}; move the others away")
    original = inside(folder, f"{stems[0]}.pt", folder)
    return original if original.is_file() else inside(folder, f"{stems[0]}.safetensors", folder)


def head_tensors(folder: Path, name: str) -> dict[str, Tensor] | None:
    """Tensors of the head's file, None where there is no such file.

    The .pt is a pickle: it is read once, as plain tensors only, and kept as safetensors, beside it or in a cache under its hash.
    """
    original = head_file(folder, name)
    if original is None:
        return None
    if original.suffix == ".safetensors":
        return _finite(read_tensors(original), original)
    beside = inside(folder, f"{original.stem}.safetensors", folder)
    with original.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cached = Path(constants.HF_HOME) / "worldenv" / f"{digest}.safetensors"
    for path in (beside, cached):
        if path.is_file() and _made_of(path) == digest:
            return _finite(read_tensors(path), original)
    tensors = _finite(_unpickled(original), original)
    with disk_full_told(cached):
        if not (folder.stat().st_mode & 0o222 and _kept(tensors, beside, digest)):  # root may write anywhere, but is not asked to
            _kept(tensors, cached, digest)
    return tensors


def _finite(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    return {name: checked(tensor, name, path) for name, tensor in tensors.items()}


def heads_on_the_hub(folder: Path) -> set[str] | None:
    """Which heads a Hub repository has of which only the small files are here; None for a folder that holds what it has."""
    cached = downloaded(folder)
    if cached is None or any(folder.glob("*_checkpoint.*")):
        return None
    from huggingface_hub import HfApi

    with told(cached[0]):
        files = HfApi().list_repo_files(cached[0], revision=cached[1])
    beginning = folder.as_posix().partition(f"/snapshots/{cached[1]}")[2].strip("/")
    return {
        Path(file).name.partition("--")[0]
        for file in files
        if file.endswith("_checkpoint.pt") and Path(file).parent.as_posix().strip(".") == beginning
    }


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Plain tensors of a pickle, no larger than the file: neither packed nor stretched (a stride of 0 makes gigabytes of one number)."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise UserError(f"{path} is a compressed archive, expected what torch.save writes; use the file that OpenVLA-OFT's finetune.py wrote")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than plain tensors, or is damaged: it is not loaded; use the file that OpenVLA-OFT's finetune.py wrote"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is truncated or damaged ({str(error).splitlines()[0]}): download it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} holds {type(tensors).__name__}, expected tensors by name, as OpenVLA-OFT's finetune.py writes them")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > size:
        raise UserError(f"{path} claims larger tensors than it holds: it is not loaded; use the file that OpenVLA-OFT's finetune.py wrote")
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}


def _kept(tensors: dict[str, Tensor], path: Path, digest: str) -> bool:
    """Write safetensors that appear whole; False where that is not allowed."""
    from safetensors.torch import save_file

    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)  # nothing that somebody put there is written through
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
    files = [inside(folder, f"lora_adapter/{name}", folder) for name in ("adapter_config.json", "adapter_model.safetensors")]
    if not all(file.is_file() for file in files):
        raise UserError(f"{path}: adapter_config.json or adapter_model.safetensors is missing, expected a peft adapter; set policy.adapter=false")
    config, tensors = read_json(files[0]), _finite(read_tensors(files[1]), files[1])
    if odd := [name for name in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out") if config.get(name)]:
        raise UserError(f"{path / 'adapter_config.json'}: {', '.join(odd)} set, expected plain LoRA; merge it with peft instead")
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1 or not math.isfinite(alpha):
        raise UserError(f"{files[0]}: r is {rank!r:.40} and lora_alpha {alpha!r:.40}, expected a rank of at least 1 and a number")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
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
        raise UserError(
            f"{path / 'adapter_model.safetensors'}: {listed}: expected A and B of rank {rank} for tensors of this base; name its own base"
        )
    return change
