"""A checkpoint's weights: which safetensors files hold them, what their headers say, and their tensors one by one.

A header tells names and shapes, which safetensors holds against the size of the file. So whatever a config.json claims, nothing is built or
allocated that the files cannot fill.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from torch import Tensor

from ..atomic import opened, read_json
from ..confine import inside
from ..errors import UserError
from ..hub import downloaded, told
from .kinds import adapter_without_base

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_LAYERS = 1000  # far more than any published model has
LAYERS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers", "depth")

Stored = dict[str, tuple[Path, tuple[int, ...]]]  # a tensor's name in its file -> the file, its shape


def shard_paths(folder: Path) -> list[Path]:
    """model.safetensors, or the files that its index lists. Raises UserError where one is not there, or a name leads out of the folder."""
    names = _names(folder)
    paths = [inside(folder, name, folder / INDEX) for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{folder}: {', '.join(missing)} missing, expected the weights there; {_cause(folder)}")
    for path in paths:
        with path.open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs"):
                raise UserError(f"{path} is only Git LFS's pointer to the weights; run `git lfs pull` in {folder}")
    return paths


def _names(folder: Path) -> list[str]:
    index = inside(folder, INDEX, folder)
    if inside(folder, WEIGHTS, folder).exists() or not index.is_file():
        return [WEIGHTS]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{index} has no weight_map, expected the file of every tensor there; copy that file from where the checkpoint comes from")
    return sorted({name if isinstance(name, str) else repr(name) for name in shards.values()})


def _cause(folder: Path) -> str:
    """Why weights are not there, and what to do about it."""
    repository = downloaded(folder)
    if repository:
        return f"only the small files of {repository[0]} are on this machine: unset HF_HUB_OFFLINE and run it again"
    adapter = adapter_without_base(folder)
    if adapter:
        return adapter
    if any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.ckpt")):
        return "there are pickled weights, which are not loaded: save them as safetensors (`save_pretrained(..., safe_serialization=True)`)"
    return "the folder is not complete: copy them there from where the checkpoint comes from"


def stored(folder: Path) -> Stored:
    """What the files hold. Only headers are read; of a Hub repository whose weights are not on this machine they come over the network."""
    cached = downloaded(folder)
    if cached and not all((folder / name).is_file() for name in _names(folder)):
        return _stored_on_the_hub(folder, *cached)
    found: Stored = {}
    for path in shard_paths(folder):
        with opened(path) as tensors:
            found |= {name: (path, tuple(tensors.get_slice(name).get_shape())) for name in tensors.keys()}
    return found


def _stored_on_the_hub(folder: Path, repository: str, commit: str) -> Stored:
    """Of each file its first 100 kB, and the rest of the header where it is longer."""
    from huggingface_hub import parse_safetensors_file_metadata
    from huggingface_hub.errors import SafetensorsParsingError

    found: Stored = {}
    beginning = folder.as_posix().partition(f"/snapshots/{commit}")[2].strip("/")
    for name in _names(folder):
        with told(f"{repository}: {name}"):
            try:
                header = parse_safetensors_file_metadata(repository, f"{beginning}/{name}".lstrip("/"), revision=commit)
            except SafetensorsParsingError as error:
                raise UserError(
                    f"{repository}: {name} is no safetensors file ({str(error).splitlines()[0]:.200}); name another checkpoint"
                ) from error
        found |= {tensor: (folder / name, tuple(info.shape)) for tensor, info in header.tensors.items()}
    return found


def layer_count(names: Iterable[str], pattern: str, where: Path) -> int:
    """One more than the largest layer number, which is the group of `pattern`; 0 where no name fits.

    Raises UserError for a number that as few tensors cannot have: a model of that many layers would be built before any is missed.
    """
    numbers = [match[1] for name in names if (match := re.match(pattern, name))]
    largest = max(numbers, key=lambda number: (len(number.lstrip("0")), number.lstrip("0")), default=None)
    if largest is None:
        return 0
    if len(largest) > 9 or int(largest) >= min(len(numbers), MOST_LAYERS):
        raise UserError(f"{where}: a tensor is of layer {largest:.20}, but there are only {len(numbers)} tensors of layers; this is no whole model")
    return 1 + int(largest)


def check_layers(config: dict, found: Collection[str], where: Path) -> None:
    """Raises UserError where a configuration, or one within it, declares more layers than there are tensors."""
    for key, value in config.items():
        if isinstance(value, dict):
            check_layers(value, found, where)
        elif key in LAYERS and isinstance(value, int) and not value <= min(len(found), MOST_LAYERS):
            raise UserError(f"{where}: {key} is {value}, but the weights are {len(found)} tensors; this configuration is not theirs")


def tensors_in(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor as stored), one after the other. Raises UserError for one that is not finite."""
    with opened(path) as file:
        there = set(file.keys())
        for name in names:
            if name in there:
                yield name, checked(file.get_tensor(name), name, path)


def checked(tensor: Tensor, name: str, path: Path) -> Tensor:
    """`tensor`, looked at in parts of 16 million numbers so that little memory is needed. Raises UserError where one of them is not finite, and
    for another type than float16, bfloat16, float32 and float64: quantized weights mean nothing without their scales.
    """
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{path}: {name} is of type {kind}, expected float16, bfloat16 or float32; use the checkpoint that was not quantized")
    if not all(part.isfinite().all() for part in tensor.flatten().split(2**24)):
        raise UserError(f"{path}: {name} holds values that are not finite (NaN or infinite): a policy with it cannot act; use an earlier checkpoint")
    return tensor
