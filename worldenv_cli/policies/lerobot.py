"""lerobot's checkpoints, whatever the policy in them: sizes and cameras out of config.json, and what lerobot_steps.py reads around them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AliasChoices, BaseModel, Field, PositiveInt
from torch import Tensor

from ..atomic import read_json
from ..confine import inside
from ..errors import UserError
from . import parts
from .kinds import without_config
from .lerobot_steps import ACTION, MOST, OLD_STATISTICS, STATE, TokenizerSettings, read_processing, validated
from .normaliser import Normaliser
from .shards import Stored, stored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Side = Annotated[int, Field(ge=1, le=4096)]  # of a picture, in pixels


@dataclass(frozen=True, eq=False)
class LeRobotCheckpoint:
    folder: Path
    config: dict  # config.json as it is
    image_keys: list[str]  # cameras in the order in which the model sees them, without "observation.images." or "observation."
    image_shapes: dict[str, tuple[int, int]]  # (H, W) that each camera recorded
    image_size: tuple[int, int]  # (H, W) that pictures are resized to
    empty_cameras: int  # masked pictures that follow the cameras'
    state_size: int
    action_size: int
    max_state: int  # what states and actions are padded to, with zeros
    max_action: int
    chunk: int
    steps: int  # denoising steps
    state_normaliser: Normaliser
    action_normaliser: Normaliser
    tokenizer_settings: TokenizerSettings
    other_statistics: tuple[str, ...] = ()  # data sets whose statistics a base model keeps beside, under names of their own

    def tokenizer(self, folder: Path) -> "PreTrainedTokenizerBase":
        """The tokenizer named in the settings: a folder inside or beside `folder`, or else from the Hub (HF_HUB_OFFLINE is honoured)."""
        return parts.tokenizer(parts.part(self.tokenizer_settings.name, "tokenizer", folder, folder))

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        return self.tokenizer(self.folder)

    def tokenise(self, instructions: list[str], padding: Literal["longest", "max_length"] | None = None) -> tuple[Tensor, Tensor]:
        """B instructions -> token ids (B, L) int64 and mask (B, L) bool; `padding` replaces the settings' own: with "max_length", L is constant."""
        settings = self.tokenizer_settings
        if settings.newline:
            instructions = [text if text.endswith("\n") else text + "\n" for text in instructions]
        padded = {"padding": padding or settings.padding, "padding_side": settings.padding_side}
        tokens = self._tokenizer(instructions, max_length=settings.max_length, truncation=True, return_tensors="pt", **padded)
        return tokens["input_ids"], tokens["attention_mask"].bool()


def read_lerobot(folder: Path, expected_type: str, statistics: bool = True) -> LeRobotCheckpoint:
    """All but the weights. `statistics`: whether the checkpoint's own are wanted; they tell the sizes of state and action then.

    Raises UserError where a file, field or statistic that is needed is missing or does not fit the rest.
    """
    folder = Path(folder)
    path = inside(folder, "config.json", folder)
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json: {without_config(folder)}")
    config = read_json(path)
    if config.get("type") != expected_type:
        raise UserError(f"{path} is of type {config.get('type')!r}: expected {expected_type!r}; name another checkpoint, or the policy it is of")
    fields = validated(_PolicyFields, config, path)
    if fields.adapt_to_pi_aloha or fields.use_delta_joint_actions_aloha:
        raise UserError(f"{path}: converts ALOHA's joints on the way (adapt_to_pi_aloha), which is not supported; use one trained without it")
    processing = read_processing(folder, {name: fields.size(name, path) for name in (STATE, ACTION)}, config, statistics)
    sizes = {STATE: len(processing.state.offset), ACTION: len(processing.action.offset)}
    if sizes[STATE] > fields.max_state_dim or sizes[ACTION] > fields.max_action_dim:
        room = f"max_state_dim {fields.max_state_dim} and max_action_dim {fields.max_action_dim}"
        raise UserError(f"{path} has {room}, less than its features: {sizes[STATE]} and {sizes[ACTION]}; these files are not of one training")
    cameras = _cameras(fields, path)
    # the pair in `resize_imgs_with_padding` is used as (width, height), the one in `image_resolution` as (height, width)
    resize = fields.image_resolution or (fields.resize_imgs_with_padding and fields.resize_imgs_with_padding[::-1])
    return LeRobotCheckpoint(
        folder=folder,
        config=config,
        image_keys=list(cameras),
        image_shapes=cameras,
        image_size=resize or next(iter(cameras.values())),
        empty_cameras=fields.empty_cameras,
        state_size=sizes[STATE],
        action_size=sizes[ACTION],
        max_state=fields.max_state_dim,
        max_action=fields.max_action_dim,
        chunk=fields.chunk_size,
        steps=fields.steps,
        state_normaliser=processing.state,
        action_normaliser=processing.action,
        tokenizer_settings=processing.tokenizer,
        other_statistics=processing.others,
    )


def read_weights(folder: Path) -> Stored:
    """What the files hold by its published name, without the statistics that earlier versions kept among the weights."""
    return {name: where for name, where in stored(Path(folder)).items() if not name.startswith(OLD_STATISTICS)}


class _Feature(BaseModel):
    type: str
    shape: tuple[PositiveInt, ...]


class _PolicyFields(BaseModel):
    """What is needed of config.json; the rest of it concerns training."""

    input_features: dict[str, _Feature] | None = None
    output_features: dict[str, _Feature] | None = None
    chunk_size: int = Field(ge=1, le=1000)
    max_state_dim: int = Field(ge=1, le=MOST)
    max_action_dim: int = Field(ge=1, le=MOST)
    steps: int = Field(ge=1, le=1000, validation_alias=AliasChoices("num_steps", "num_inference_steps"))
    image_resolution: tuple[Side, Side] | None = None
    resize_imgs_with_padding: tuple[Side, Side] | None = None
    empty_cameras: int = Field(0, ge=0, le=16)
    normalization_mapping: dict[str, str] = {}
    adapt_to_pi_aloha: bool = False  # other units of states and actions, which nobody has needed here
    use_delta_joint_actions_aloha: bool = False

    def size(self, name: str, path: Path) -> int:
        """The declared numbers of a feature, 0 where there are none: a first guess, for some fine-tunes keep the base model's declaration."""
        feature = ((self.output_features if name == ACTION else self.input_features) or {}).get(name)
        if feature is None:
            return 0
        if len(feature.shape) != 1:
            raise UserError(f"{path}: the feature {name} is of shape {feature.shape}: expected a vector; this policy is of another kind")
        return min(feature.shape[0], MOST)


def _cameras(fields: _PolicyFields, path: Path) -> dict[str, tuple[int, int]]:
    """{camera: (H, W)} in the order in which lerobot shows them: all features of pictures, whatever they are called, but for the empty ones."""
    cameras = {}
    for key, feature in (fields.input_features or {}).items():
        if feature.type != "VISUAL" or len(feature.shape) != 3 or "empty_camera_" in key:
            continue
        name = key.removeprefix("observation.").removeprefix("images.")
        last = feature.shape[2] in (1, 3, 4) and feature.shape[0] not in (1, 3, 4)  # channels, in some files
        height, width = feature.shape[:2] if last else feature.shape[1:]
        cameras[key if name in cameras else name] = (min(height, 4096), min(width, 4096))
    if not cameras:
        raise UserError(f"{path}: input_features lists no picture (VISUAL, of shape (3, H, W)): expected one camera or more; use a policy that sees")
    return cameras
