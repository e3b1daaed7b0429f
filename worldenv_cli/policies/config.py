"""Settings of the policies: sizes of the compact one, how a published checkpoint is used, adapters, supervised fine-tuning."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from ..config import Channels, Config, TrainingConfig

BLOCK = 4  # pixels a side that the compact policy folds into channels: see packing.py


class TextConfig(Config):
    """The encoder of instructions."""

    pretrained: str | None = Field(
        None, description="Name on the Hub of a text encoder that stays frozen; without one, a small encoder of bytes is trained"
    )
    width: int = Field(64, ge=1, description="Size of the vector that an instruction becomes")
    layers: int = Field(2, ge=1, description="Layers of the small encoder of bytes")
    max_tokens: int = Field(96, ge=8, description="Tokens of an instruction that are read; the rest is cut off")


class CompactPolicyConfig(Config):
    """The compact policy: its sizes, and the bounds of its action noise."""

    camera: str = Field("front", description="Camera that the policy looks through; follows the environment")
    resolution: int = Field(64, ge=1, description="Pixels on a side of its pictures; follows the environment")
    chunk: int = Field(4, ge=1, description="Actions in a chunk; follows the environment")
    state_size: int = Field(4, ge=1, description="Numbers in the proprioception; follows the environment")
    action_size: int = Field(4, ge=1, description="Numbers in an action; follows the environment")
    channels: tuple[Channels, Channels] = Field((48, 64), description="Channels of the two levels of the image encoder")
    width: int = Field(96, ge=4, multiple_of=4, description="Width of the transformer that predicts the chunk")
    layers: int = Field(2, ge=1, description="Layers of that transformer")
    text: TextConfig = Field(TextConfig(), description="The encoder of instructions")
    scale_min: float = Field(0.03, gt=0, description="Smallest Laplace scale of the action noise, in action units")
    scale_max: float = Field(0.15, gt=0, description="Largest Laplace scale of the action noise, in action units")
    shared_noise: float = Field(0.7, ge=0, description="Exploration noise shared by all actions of a chunk, as a multiple of their own")

    @property
    def cameras(self) -> tuple[str, ...]:
        return (self.camera,)

    @property
    def size_step(self) -> int:
        """Pictures must be a multiple of this many pixels a side: packed, and halved once."""
        return 2 * BLOCK


class LoraSettings(Config):
    """A LoRA adapter."""

    rank: int = Field(16, ge=1, description="Rank of the adapter")
    alpha: int = Field(16, ge=1, description="Scaling of the adapter: its output is multiplied by alpha / rank")
    targets: str | None = Field(None, description="Regular expression for the names of the adapted modules; without one, what suits the model family")


class VLAConfig(Config):
    """A published vision-language-action checkpoint: everything that it does not say about itself."""

    size_step: ClassVar[int] = 1  # pictures of any size are resized

    model: str = Field(description="Folder of a checkpoint, or owner/name[@revision] on the Hub: OpenVLA-OFT, pi0 or SmolVLA")
    cameras: tuple[str, ...] = Field(
        ("front",), min_length=1, description="Cameras of the environment that it looks through, in the order of the checkpoint's"
    )
    statistics: Literal["checkpoint", "dataset"] = Field(
        "checkpoint", description="Which statistics normalize states and actions: the checkpoint's, or the demonstrations' for another robot"
    )
    unnorm_key: str | None = Field(None, description="OpenVLA: which of the checkpoint's statistics to use; needed only where there are several")
    actions: Literal["l1", "tokens"] = Field("l1", description="OpenVLA: how actions are read, by the regression head or as tokens")
    predicts: int | None = Field(
        None, ge=1, description="OpenVLA: actions in one answer, which no file says; by default 8, or ALOHA's 25 or Bridge's 5 by the statistics"
    )
    adapter: bool = Field(False, description="OpenVLA: merge lora_adapter/ first, for weights that were published without it")
    new_head: bool = Field(False, description="OpenVLA: start from an untrained L1 head and proprioception projector, on the base model")
    gripper: Literal["libero", "as recorded"] = Field(
        "libero", description="OpenVLA: convention of the gripper: libero (1 open, 0 closed, played as a sign) or as recorded"
    )
    proprioception: bool = Field(True, description="OpenVLA: with new_head, whether the policy reads proprioception")
    crop: bool = Field(True, description="OpenVLA: trained with random crops, so that it is shown the middle 90 % of a picture")
    jpeg: bool = Field(True, description="OpenVLA: send pictures through JPEG, as its training data were")
    max_tokens: int = Field(64, ge=8, description="OpenVLA: tokens that the prompt may take")
    shifted_patches: bool | None = Field(
        None, description="SmolVLA: trained under a transformers version that misplaced patches; by default, what its files say"
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Number format of the frozen weights; what is trained is float32")
    gradient_checkpointing: bool = Field(False, description="Compute activations again in the backward pass: slower, with less memory")
    lora: LoraSettings = Field(LoraSettings(rank=32, alpha=16), description="The adapter that is trained")
    scale_min: float = Field(0.03, gt=0, description="Regression: smallest Laplace scale, in normalized action units")
    scale_max: float = Field(0.15, gt=0, description="Regression: largest Laplace scale, in normalized action units")
    shared_noise: float = Field(0.0, ge=0, description="Regression: exploration noise shared by all actions of a chunk, as a multiple of their own")
    temperature: float = Field(1.6, gt=0, description="Tokens: temperature of exploration")
    walk: Literal["sde", "learned"] = Field(
        "sde", description="Flow: where denoising is noisy: sde (one random step) or learned (every step, by a learned amount)"
    )
    noise_level: float = Field(0.5, gt=0, description="Flow, sde: noise level in sigma = level sqrt(t / (1 - t))")
    noise_bounds: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.08, 0.16), description="Flow, learned: smallest and largest standard deviation of a step"
    )
    chunk: int = Field(4, ge=1, description="Actions that are played of each answer; follows the environment")
    state_size: int = Field(4, ge=1, description="Numbers in the proprioception; follows the environment")
    action_size: int = Field(4, ge=1, description="Numbers in an action; follows the environment")
    resolution: int = Field(
        64, ge=8, description="Pixels on a side of the environment's pictures, which are resized for the checkpoint; follows the environment"
    )


class SFTConfig(TrainingConfig):
    """Supervised fine-tuning of a policy."""

    scale_steps: int = Field(60, ge=0, description="Further steps for the scale of the action noise alone, by Laplace likelihood")
    shift: int = Field(2, ge=0, description="Largest random shift of the pictures, in pixels")
    state_noise: float = Field(0.05, ge=0, description="Noise added to the proprioception, in standard deviations")
