"""SmolVLA as lerobot saves it: sizes from config.json and from the vision-language model that it names, weights from model.safetensors only.

One thing no file says. transformers 4.55 to 4.57 give patch i of a row or column the position i - 1 (the first keeps 0) where the vision tower
computes in float32, and i in bfloat16; all other versions give i. lerobot 0.4 runs on 4.57, in bfloat16 where `load_vlm_weights` is on, as it is in
smolvla_base and what was tuned from it. So a checkpoint in the layout of 0.4 with `load_vlm_weights` off is taken to be shifted. One that lerobot 0.5
trained so is not, and looks the same: say `shifted_patches=False`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ...artifacts import misfits
from ...errors import UserError
from ..lerobot import PREPROCESSOR, LeRobotCheckpoint, beside, not_found, read_lerobot, read_weights, validated
from .model import SmolVLA, SmolVLAConfig

if TYPE_CHECKING:
    from transformers import SmolVLMConfig

PUBLISHED = {  # beginnings of names here and in model.safetensors; the first that fits
    "vlm.vision.": "model.vlm_with_expert.vlm.model.vision_model.",
    "vlm.connector.": "model.vlm_with_expert.vlm.model.connector.",
    "vlm.embed_tokens.": "model.vlm_with_expert.vlm.model.text_model.embed_tokens.",
    "vlm.layers.": "model.vlm_with_expert.vlm.model.text_model.layers.",
    "vlm.state_proj.": "model.state_proj.",
    "expert.layers.": "model.vlm_with_expert.lm_expert.layers.",
    "expert.norm.": "model.vlm_with_expert.lm_expert.norm.",
    "expert.": "model.",
}
WORDS, OUT = "model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight", "model.vlm_with_expert.vlm.lm_head.weight"
UNUSED = (OUT, "model.vlm_with_expert.vlm.model.text_model.norm.weight")  # no word is ever predicted


def load_smolvla(
    folder: Path, *, dtype: torch.dtype = torch.float32, shifted_patches: bool | None = None, weights: bool = True
) -> tuple[SmolVLA, LeRobotCheckpoint]:
    """The model in evaluation mode on the CPU, its weights as `dtype`, and what surrounds it.

    The vision-language model's own weights are not needed, only its config.json: from a folder in or beside the checkpoint, or from the Hub.
    Weights go from the file to their place one by one, without a second copy of the model in memory; without `weights` parameters are shapes only.
    Raises UserError as `read_lerobot` does, for kinds of SmolVLA that are not known here, and for tensors that do not fit.
    """
    found = read_lerobot(folder, "smolvla")
    config = smolvla_config(found, shifted_patches)
    with torch.device("meta"):
        model = SmolVLA(config)
    model.to(dtype)
    if not weights:
        return model.eval(), found
    model.to_empty(device="cpu")
    _fill(model, read_weights(found.folder), found.folder / "model.safetensors")
    return model.eval(), found


class _Fields(BaseModel):
    """What is needed of config.json beside what every policy of lerobot has."""

    vlm_model_name: str = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
    load_vlm_weights: bool = False
    add_image_special_tokens: Literal[False] = False
    attention_mode: Literal["cross_attn", "self_attn"] = "cross_attn"
    self_attn_every_n_layers: int = 2
    num_vlm_layers: int = 16
    num_expert_layers: int = -1
    expert_width_multiplier: float = Field(0.75, gt=0)
    min_period: float = Field(4e-3, gt=0)
    max_period: float = Field(4.0, gt=0)


def smolvla_config(found: LeRobotCheckpoint, shifted_patches: bool | None = None) -> SmolVLAConfig:
    """Sizes for the model, from a checkpoint's config.json and its vision-language model's."""
    path = found.folder / "config.json"
    fields = validated(_Fields, found.config, path)
    vlm = _vlm_config(found.folder, fields.vlm_model_name)
    available = vlm.text_config.num_hidden_layers
    layers = min(fields.num_vlm_layers, available) if fields.num_vlm_layers > 0 else available
    if fields.num_expert_layers > 0 and fields.num_expert_layers != layers:
        raise UserError(
            f"{path}: num_expert_layers is {fields.num_expert_layers}: expected {layers}, as the language model has; name another checkpoint"
        )
    patch, joined = vlm.vision_config.patch_size, vlm.scale_factor
    height, width = found.image_size
    if height != width or height // patch % joined:
        raise UserError(
            f"{path}: pictures of {height}x{width} pixels: expected a square whose side is a multiple of {patch * joined} ({patch}-pixel patches, "
            f"joined {joined} by {joined}); mend resize_imgs_with_padding"
        )
    if shifted_patches is None:
        shifted_patches = not fields.load_vlm_weights and (found.folder / PREPROCESSOR).is_file()
    every = fields.self_attn_every_n_layers
    return SmolVLAConfig(
        vlm=vlm.to_dict(),
        layers=layers,
        crossing=tuple(fields.attention_mode == "cross_attn" and not (every > 0 and layer % every == 0) for layer in range(layers)),
        expert_width=fields.expert_width_multiplier,
        chunk=found.chunk,
        max_state=found.max_state,
        max_action=found.max_action,
        image_size=found.image_size,
        empty_cameras=found.empty_cameras,
        shifted_patches=shifted_patches,
        min_period=fields.min_period,
        max_period=fields.max_period,
    )


def _vlm_config(folder: Path, name: str) -> "SmolVLMConfig":
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(beside(folder, name), trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise UserError(f"{folder}: {not_found('vision-language model', name, error)}") from error
    if config.model_type != "smolvlm" or config.text_config.model_type != "llama":
        kind = config.model_type if config.model_type != "smolvlm" else f"smolvlm on {config.text_config.model_type}"
        raise UserError(f"{folder}: its vision-language model {name!r} is {kind}: expected smolvlm on llama; name another checkpoint")
    return config


def _fill(model: SmolVLA, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the weights into their places; every one that does not fit is named as the file names it."""
    places = {published(name): place for name, place in model.state_dict().items()}
    if WORDS not in tensors and OUT in tensors:  # tied, and written once
        tensors[WORDS] = tensors[OUT]
    used = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name in places or name not in UNUSED}
    problems = misfits({name: tuple(place.shape) for name, place in places.items()}, used)
    if problems:
        raise UserError(f"{path}: its tensors do not fit SmolVLA ({problems}); download the checkpoint again, or mend its config.json")
    for name, place in places.items():
        place.copy_(tensors[name])


def published(name: str) -> str:
    """What the file calls the model's tensor `name`."""
    beginning = next(beginning for beginning in PUBLISHED if name.startswith(beginning))
    return PUBLISHED[beginning] + name.removeprefix(beginning)
