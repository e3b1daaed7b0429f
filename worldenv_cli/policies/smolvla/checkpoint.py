"""SmolVLA as lerobot saves it: sizes from config.json and from the vision-language model that it names, weights from model.safetensors only.

One thing no file says. transformers 4.55 to 4.57 give patch i of a row or column the position i - 1 (the first keeps 0) where the vision tower
computes in float32, and i in bfloat16; all other versions give i. lerobot 0.4 runs on 4.57, in bfloat16 where `load_vlm_weights` is on, as it is in
smolvla_base and what was tuned from it. So a checkpoint of 0.4 with `load_vlm_weights` off is taken to be shifted. Those of lerobot 0.6 name a
`pretrained_revision` in config.json and are not. One that lerobot 0.5 trained is not either, and looks like 0.4's: say `shifted_patches=False`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, Field

from ...artifacts import misfits
from ...atomic import read_json
from ...errors import UserError
from .. import parts
from ..lerobot import LeRobotCheckpoint, read_lerobot, read_weights
from ..lerobot_steps import PREPROCESSOR, validated
from ..shards import Stored, check_layers, tensors_in
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
    folder: Path, *, dtype: torch.dtype = torch.float32, shifted_patches: bool | None = None, weights: bool = True, statistics: bool = True
) -> tuple[SmolVLA, LeRobotCheckpoint]:
    """The model in evaluation mode on the CPU, its weights as `dtype`, and what surrounds it.

    The vision-language model's own weights are not needed, only its config.json: from a folder in or beside the checkpoint, or from the Hub.
    Weights go from the file to their place one by one, without a second copy of the model in memory; without `weights` parameters are shapes only.
    `statistics`: whether the checkpoint's own are wanted. Raises UserError as `read_lerobot` does, for kinds of SmolVLA that are not known here, and
    for tensors that do not fit.
    """
    found = read_lerobot(folder, "smolvla", statistics)
    stored = read_weights(found.folder)
    config = smolvla_config(found, shifted_patches, stored)
    try:
        with torch.device("meta"):
            model = SmolVLA(config)
    except parts.REFUSALS as error:
        raise UserError(f"{found.folder / 'config.json'}: no SmolVLA of these sizes can be built ({parts.told_by(error)})") from error
    origins = _origins(model, stored, found.folder)
    model.to(dtype)
    if weights:
        model.to_empty(device="cpu")
        _fill(model, origins, stored)
    return model.eval(), found


class _Fields(BaseModel):
    """What is needed of config.json beside what every policy of lerobot has."""

    vlm_model_name: str = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
    load_vlm_weights: bool = False
    add_image_special_tokens: bool = False
    attention_mode: Literal["cross_attn", "self_attn"] = "cross_attn"
    self_attn_every_n_layers: int = 2
    num_vlm_layers: int = 16
    num_expert_layers: int = -1
    expert_width_multiplier: float = Field(0.75, gt=0)
    min_period: float = Field(4e-3, gt=0)
    max_period: float = Field(4.0, gt=0)


def smolvla_config(found: LeRobotCheckpoint, shifted_patches: bool | None = None, stored: Stored | None = None) -> SmolVLAConfig:
    """Sizes for the model, from a checkpoint's config.json and its vision-language model's. With `stored`, no more layers than that many tensors."""
    path = found.folder / "config.json"
    fields = validated(_Fields, found.config, path)
    folder = parts.part(fields.vlm_model_name, "vision-language model", found.folder, found.folder)
    if stored is not None:
        check_layers(read_json(folder / "config.json"), stored, folder / "config.json")
    vlm = _vlm_config(folder)
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
            f"joined {joined} by {joined}), as SmolVLM takes them; name another checkpoint"
        )
    if shifted_patches is None:
        shifted_patches = not fields.load_vlm_weights and (found.folder / PREPROCESSOR).is_file() and "pretrained_revision" not in found.config
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
        **(_around_pictures(folder) if fields.add_image_special_tokens else {}),
        shifted_patches=shifted_patches,
        min_period=fields.min_period,
        max_period=fields.max_period,
    )


def _vlm_config(folder: Path) -> "SmolVLMConfig":
    config = parts.configuration(folder, "vision-language model")
    if config.model_type != "smolvlm" or config.text_config.model_type != "llama":
        kind = config.model_type if config.model_type != "smolvlm" else f"smolvlm on {config.text_config.model_type}"
        raise UserError(f"{folder}: this vision-language model is {kind}: expected smolvlm on llama; name another checkpoint")
    return config


def _around_pictures(folder: Path) -> dict[str, tuple[int, ...]]:
    """Ids of the tokens that begin and end a picture where `add_image_special_tokens` is on."""
    tokenizer = parts.tokenizer(folder, "tokenizer of SmolVLM")
    around, picture = tokenizer.convert_tokens_to_ids(["<fake_token_around_image>", "<global-img>"])
    if None in (around, picture) or tokenizer.unk_token_id in (around, picture):
        raise UserError(
            f"{folder}: its tokenizer lacks <fake_token_around_image> or <global-img>, which add_image_special_tokens puts around pictures"
        )
    return {"before_picture": (around, picture), "after_picture": (around,)}


def _origins(model: SmolVLA, stored: Stored, folder: Path) -> dict[str, str]:
    """{the model's tensor: its name in the files}; every one that does not fit is named as the files name it."""
    named = {name.replace("._orig_mod.", "."): name for name in stored}  # torch.compile's
    if WORDS not in named and OUT in named:  # tied, and written once
        named[WORDS] = named[OUT]
    places = {published(name): (name, tuple(place.shape)) for name, place in model.state_dict().items()}
    used = {name: stored[origin][1] for name, origin in named.items() if name in places or name not in UNUSED}
    problems = misfits({name: shape for name, (_, shape) in places.items()}, used)
    if problems:
        raise UserError(f"{folder}: its tensors do not fit SmolVLA ({problems}): weights and config.json are not of one checkpoint")
    return {place: named[name] for name, (place, _) in places.items()}


def _fill(model: SmolVLA, origins: dict[str, str], stored: Stored) -> None:
    places, owners = model.state_dict(), {origin: place for place, origin in origins.items()}
    for path in sorted({stored[origin][0] for origin in owners}):
        for origin, tensor in tensors_in(path, owners):
            places[owners[origin]].copy_(tensor)


def published(name: str) -> str:
    """What the file calls the model's tensor `name`."""
    beginning = next(beginning for beginning in PUBLISHED if name.startswith(beginning))
    return PUBLISHED[beginning] + name.removeprefix(beginning)
