"""pi0's checkpoints: the model, filled with the tensors of a folder in lerobot's or transformers' layout (layouts.py reads what is around them).

Tensors have lerobot's names, those of transformers' modules, or what its `save_pretrained` makes of them, which are close to lerobot's: one table
serves all. The expert's embedding matrix, which is never used, is left out where a file has it.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...artifacts import TENSORS, misfits
from ...atomic import opened, read_json
from ...errors import UserError
from ..lerobot import LeRobotCheckpoint, read_lerobot
from .layouts import REFUSALS, lerobot_architecture, read_transformers
from .model import Pi0, Pi0Config

INDEX = TENSORS + ".index.json"
NAMES = (  # how names begin here, in lerobot's files and in transformers'; the first that fits. A "model." in front may be missing there
    ("vlm.language_model.embed_tokens.", "model.paligemma_with_expert.paligemma.lm_head.", "model.vlm.language_model.embed_tokens."),  # tied
    ("vlm.", "model.paligemma_with_expert.paligemma.model.", "model.vlm."),
    ("expert.dit.embed_tokens.", "model.paligemma_with_expert.gemma_expert.lm_head.", "model.dit.embed_tokens."),
    ("expert.dit.", "model.paligemma_with_expert.gemma_expert.model.", "model.dit."),
    ("expert.embed_action_time.state_proj.", "model.state_proj.", "embed_action_time.state_proj."),
    ("expert.embed_action_time.action_in_proj.", "model.action_in_proj.", "embed_action_time.action_in_proj."),
    ("expert.embed_action_time.action_time_mlp_in.", "model.action_time_mlp_in.", "embed_action_time.action_time_mlp_in."),
    ("expert.embed_action_time.action_time_mlp_out.", "model.action_time_mlp_out.", "embed_action_time.action_time_mlp_out."),
    ("expert.action_out_proj.", "model.action_out_proj.", "action_out_proj."),
)
UNUSED = "expert.dit.embed_tokens.weight"
FLOAT32 = ("expert.embed_action_time.", "expert.action_out_proj.")  # small, and what they lose in bfloat16 goes straight into the actions

Stored = dict[str, tuple[Path, tuple[int, ...]]]  # a tensor's name in its file -> the file, its shape


def load_pi0(folder: Path, *, dtype: torch.dtype = torch.float32, weights: bool = True) -> tuple[Pi0, LeRobotCheckpoint]:
    """The model in evaluation mode on the CPU, and what else its folder says: sizes, cameras, normalisation, tokenizer.

    Weights are read one tensor at a time and cast to `dtype` on the way (the projections of states and actions stay in float32), so the model
    is in memory once; without `weights` there are only shapes. Move it with `.to(device)`; a later `.to(dtype)` would round its rotary
    frequencies too.

    Raises UserError for another type of policy, for a missing or truncated file, and for missing, unexpected and misshapen tensors, all listed.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if path.is_file() and "model_type" in (found := read_json(path)):
        checkpoint, cameras, stored = read_transformers(folder, found), None, _stored(folder)
        architecture = found
    else:
        checkpoint, stored = read_lerobot(folder, "pi0"), _stored(folder)
        cameras = len(checkpoint.image_keys) + checkpoint.empty_cameras
        architecture = lerobot_architecture(checkpoint, {_own_name(name): shape for name, (_, shape) in stored.items()})
    try:
        model = unfilled(Pi0Config(architecture=architecture, cameras=cameras))
    except REFUSALS as error:
        raise UserError(f"{path}: no pi0 of these sizes can be built ({' '.join(str(error).split())[:300]}); download it again") from error
    if weights:
        _fill(model, stored, dtype, folder)
    else:
        model.vlm.to(dtype)
        model.expert.dit.to(dtype)
    return model.eval(), checkpoint


def unfilled(config: Pi0Config) -> Pi0:
    """A model whose parameters have shapes but no storage ("meta"), to be filled by `load_state_dict(..., assign=True)`. Its buffers are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return Pi0(config)


def _stored(folder: Path) -> Stored:
    """What lies in model.safetensors, or in the shards that an index lists. Only headers are read."""
    stored: Stored = {}
    for file in _files(folder):
        with opened(file) as tensors:
            stored |= {name: (file, tuple(tensors.get_slice(name).get_shape())) for name in tensors.keys()}
    return stored


def _files(folder: Path) -> list[Path]:
    if (folder / TENSORS).is_file():
        return [folder / TENSORS]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} holds neither {TENSORS} nor {INDEX}: expected the weights there; download the whole folder again")
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{folder / INDEX} has no weight_map: expected the names of tensors and of their files; download it again")
    climbing = [name for name in shards.values() if Path(str(name)).name != name]
    if climbing:
        raise UserError(f"{folder / INDEX}: names {climbing[0]!r}, expected files beside it; do not trust this checkpoint")
    files = [folder / str(name) for name in sorted(set(shards.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}: expected the files that {INDEX} lists; download the whole folder again")
    return files


def _own_name(name: str) -> str:
    name = name.replace("._orig_mod.", ".")  # torch.compile's
    name = name.replace(".language_model.model.", ".language_model.").replace(".vision_tower.vision_model.", ".vision_tower.")
    for own, *others in NAMES:
        for other in (*others, *(other.removeprefix("model.") for other in others)):
            if name.startswith(other):
                return own + name.removeprefix(other)
    return name


def published_in(folder: Path) -> Callable[[str], str]:
    """From names here to those in a checkpoint's files."""
    names = {_own_name(name): name for name in _stored(folder)}
    return lambda own: names[_own_name(own)]


def _published(own: str, lerobot: bool) -> str:
    """The name that a missing tensor should have had."""
    beginning, *others = next(names for names in NAMES if own.startswith(names[0]))
    rest = own.removeprefix(beginning)
    return others[0] + rest.replace("vision_tower.", "vision_tower.vision_model.") if lerobot else others[1] + rest


def _fill(model: Pi0, stored: Stored, dtype: torch.dtype, folder: Path) -> None:
    """Give the model its tensors, once all of them are known to fit."""
    wanted = {_own_name(name): (name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    sources = {_own_name(name): name for name in sorted(stored)}
    lerobot = any("paligemma_with_expert." in name for name in stored)
    told = misfits(
        {sources.get(own) or _published(own, lerobot): shape for own, (_, shape) in wanted.items()},
        {name: stored[name][1] for own, name in sources.items() if own in wanted or own != UNUSED},
    )
    if told:
        raise UserError(f"{folder}: its tensors do not fit pi0 ({told}); download it again, or name a checkpoint of pi0")

    tensors: dict[str, Tensor] = {}
    for file in sorted({file for file, _ in stored.values()}):
        with opened(file) as found:
            for own, (name, _) in wanted.items():
                if stored[sources[own]][0] == file:
                    kept = torch.promote_types(dtype, torch.float32) if own.startswith(FLOAT32) else dtype
                    tensors[name] = found.get_tensor(sources[own]).to(kept, copy=True)  # a copy: the file may change while the model lives
    model.load_state_dict(tensors, assign=True)
