"""A published VLA checkpoint as a policy: which one, how it is seen by the recipe's environment, and what a run keeps of it.

Families are told by config.json: OpenVLA-OFT's own layout, lerobot's (pi0, SmolVLA) and transformers' (pi0). The checkpoint's weights are never
written again: a run keeps adapters, heads and statistics, and names the checkpoint that they belong to.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from ..atomic import read_json
from ..config import Config
from ..errors import UserError
from ..hub import REFERENCE, downloaded, resolve
from .lora import LoraSettings


class VLAConfig(Config):
    """Everything that a checkpoint does not say about itself."""

    model: str = Field(description="folder of a checkpoint, or owner/name[@revision] on the Hub: OpenVLA-OFT, pi0 or SmolVLA")
    cameras: tuple[str, ...] = Field(("front",), min_length=1, description="the environment's, in the order of the checkpoint's")
    statistics: Literal["checkpoint", "dataset"] = Field("checkpoint", description="dataset: of the demonstrations, for another robot")
    unnorm_key: str | None = Field(None, description="OpenVLA: which of the checkpoint's statistics; none where there is only one")
    actions: Literal["l1", "tokens"] = Field("l1", description="OpenVLA: the regression head, or tokens of the language model")
    predicts: int | None = Field(
        None, ge=1, description="OpenVLA: steps in an answer, which no file says; none: 8, ALOHA's 25 or Bridge's 5 by its statistics"
    )
    adapter: bool = Field(False, description="OpenVLA: merge lora_adapter/, for weights that were published without it")
    new_head: bool = Field(False, description="OpenVLA: begin with an untrained L1 head and projector of proprioception, on the base model")
    gripper: Literal["libero", "as recorded"] = Field("libero", description="OpenVLA: 1 open, 0 closed, played as a sign; or as recorded")
    proprioception: bool = Field(True, description="OpenVLA: with new_head, whether the policy feels its body")
    crop: bool = Field(True, description="OpenVLA: trained with random crops, so that it is shown the middle 90 %")
    jpeg: bool = Field(True, description="OpenVLA: pictures go through JPEG, as its training data did")
    max_tokens: int = Field(64, ge=8, description="OpenVLA: room for the prompt")
    shifted_patches: bool | None = Field(None, description="SmolVLA: trained under a transformers that misplaced patches; none: by its files")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the frozen weights; what learns is float32")
    gradient_checkpointing: bool = False
    lora: LoraSettings = LoraSettings(rank=32, alpha=16)
    scale_min: float = Field(0.03, gt=0, description="regression: smallest Laplace scale, in normalised action units")
    scale_max: float = Field(0.15, gt=0)
    shared_noise: float = Field(0.0, ge=0, description="regression: part of the exploration noise that is shared along a chunk")
    temperature: float = Field(1.6, gt=0, description="tokens: of exploration")
    walk: Literal["sde", "learned"] = Field("sde", description="flow: noise at one random step of the walk, or at all with a learned amount")
    noise_level: float = Field(0.5, gt=0, description="flow, sde: sigma = level sqrt(t / (1 - t))")
    noise_bounds: tuple[float, float] = Field((0.08, 0.16), description="flow, learned: smallest and largest standard deviation of a step")
    chunk: int = Field(4, ge=1, description="steps that are played; the checkpoint may predict more. The environment's")
    state_size: int = Field(4, ge=1, description="the environment's")
    action_size: int = Field(4, ge=1, description="the environment's")
    resolution: int = Field(64, ge=8, description="of the environment's pictures, pixels; the checkpoint's own is reached by resizing")

    size_step: ClassVar[int] = 1  # pictures of any size are resized


FAMILIES = ("openvla", "pi0", "smolvla")
CONVERTED = "*_checkpoint.safetensors"  # heads of OpenVLA-OFT, which the first loading writes beside their pickles


def checkpoint_folder(config: VLAConfig) -> Path:
    folder = resolve(config.model)
    if not folder.is_dir():
        raise UserError(f"policy.model {config.model!r}: no such folder; expected a checkpoint's folder or owner/name[@revision]")
    return folder


def pinned(config: VLAConfig) -> VLAConfig:
    """With the commit that a Hub reference stands for now, so that what was learned on it is not put on another one."""
    cached, named = downloaded(checkpoint_folder(config)), REFERENCE.fullmatch(config.model)
    if cached is None or named is None:
        return config
    return config.model_copy(update={"model": f"{cached[0]}{named['folder']}@{cached[1]}"})


def family(folder: Path) -> str:
    """ "openvla", "pi0" or "smolvla"."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json: expected the checkpoint of a VLA; check policy.model")
    config = read_json(path)
    found = config.get("type") or config.get("model_type")
    if found not in FAMILIES:
        remote = "; its own code (auto_map) is not run" if "auto_map" in config else ""
        raise UserError(f"{path}: a {found!r} model, expected one of {', '.join(FAMILIES)}{remote}")
    return found
