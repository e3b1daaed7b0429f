"""pi0's checkpoints: the model, filled with the tensors of a folder in lerobot's or transformers' layout (layouts.py reads what is around them).

Tensors have lerobot's names, those of transformers' modules, or what its `save_pretrained` makes of them, which are close to lerobot's: one table
serves all. The expert's embedding matrix, which is never used, is left out where a file has it.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ...artifacts import misfits
from ...atomic import read_json
from ...confine import inside
from ...errors import UserError
from ..lerobot import LeRobotCheckpoint, read_lerobot, read_weights
from ..parts import REFUSALS, told_by
from ..shards import Stored, stored, tensors_in
from .layouts import lerobot_architecture, read_transformers
from .model import Pi0, Pi0Config

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


def load_pi0(folder: Path, *, dtype: torch.dtype = torch.float32, weights: bool = True, statistics: bool = True) -> tuple[Pi0, LeRobotCheckpoint]:
    """The model in evaluation mode on the CPU, and what else its folder says: sizes, cameras, normalisation, tokenizer.

    Weights are read one tensor at a time and cast to `dtype` on the way (the projections of states and actions stay in float32), so the model
    is in memory once; without `weights` there are only shapes. Move it with `.to(device)`; a later `.to(dtype)` would round its rotary
    frequencies too. `statistics`: whether the checkpoint's own are wanted.

    Raises UserError for another type of policy, for a missing or truncated file, and for missing, unexpected and misshapen tensors, all listed.
    """
    folder = Path(folder)
    path = inside(folder, "config.json", folder)
    if path.is_file() and "model_type" in (architecture := read_json(path)):
        held = stored(folder)
        checkpoint, cameras = read_transformers(folder, architecture, held), None
    else:
        checkpoint = read_lerobot(folder, "pi0", statistics)
        held, cameras = read_weights(folder), len(checkpoint.image_keys) + checkpoint.empty_cameras
        architecture = lerobot_architecture(checkpoint, {_own_name(name): shape for name, (_, shape) in held.items()})
    config = Pi0Config(architecture=architecture, cameras=cameras)
    model = _built(config, torch.device("meta"), path)
    wanted = {_own_name(name): (name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    sources = _sources(wanted, held, folder)
    if weights:
        model = _built(config, None, path)  # its buffers are real; now that all fits they are known to be small
        _fill(model, wanted, sources, held, dtype)
    else:
        model.vlm.to(dtype)
        model.expert.dit.to(dtype)
    return model.eval(), checkpoint


def _built(config: Pi0Config, device: torch.device | None, path: Path) -> Pi0:
    try:
        if device is None:
            return unfilled(config)
        with device:
            return Pi0(config)
    except (*REFUSALS, StrictDataclassError) as error:
        raise UserError(f"{path}: no pi0 of these sizes can be built ({told_by(error)}): weights and config.json are not of one pi0") from error


def unfilled(config: Pi0Config) -> Pi0:
    """A model whose parameters have shapes but no storage ("meta"), to be filled by `load_state_dict(..., assign=True)`. Its buffers are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return Pi0(config)


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
    names = {_own_name(name): name for name in stored(folder)}
    return lambda own: names[_own_name(own)]


def _published(own: str, lerobot: bool) -> str:
    """The name that a missing tensor should have had."""
    beginning, *others = next(names for names in NAMES if own.startswith(names[0]))
    rest = own.removeprefix(beginning)
    return others[0] + rest.replace("vision_tower.", "vision_tower.vision_model.") if lerobot else others[1] + rest


def _sources(wanted: dict[str, tuple[str, tuple[int, ...]]], held: Stored, folder: Path) -> dict[str, str]:
    """{own name: the file's}, once all tensors are known to fit."""
    sources = {_own_name(name): name for name in sorted(held)}
    lerobot = any("paligemma_with_expert." in name for name in held)
    told = misfits(
        {sources.get(own) or _published(own, lerobot): shape for own, (_, shape) in wanted.items()},
        {name: held[name][1] for own, name in sources.items() if own in wanted or own != UNUSED},
    )
    if told:
        raise UserError(f"{folder}: its tensors do not fit pi0 ({told}): weights and config.json are not of one pi0")
    return sources


def _fill(model: Pi0, wanted: dict, sources: dict[str, str], held: Stored, dtype: torch.dtype) -> None:
    tensors: dict[str, Tensor] = {}
    owners = {sources[own]: (own, name) for own, (name, _) in wanted.items()}
    for file in sorted({held[origin][0] for origin in owners}):
        for origin, tensor in tensors_in(file, owners):
            own, name = owners[origin]
            kept = torch.promote_types(dtype, torch.float32) if own.startswith(FLOAT32) else dtype
            tensors[name] = tensor.to(kept, copy=True)  # a copy: the file may change while the model lives
    model.load_state_dict(tensors, assign=True)
