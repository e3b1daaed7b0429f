"""lerobot's checkpoints, whatever the policy in them: sizes and cameras, the normalisation of states and actions, the tokenizer's settings.

Since lerobot 0.4 a folder holds config.json, model.safetensors and two pipelines of processing steps, policy_preprocessor.json and
policy_postprocessor.json, each naming the safetensors files of its statistics. Earlier ones keep the statistics in model.safetensors.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from pydantic import AliasChoices, BaseModel, Field, PositiveInt, ValidationError
from torch import Tensor

from ..artifacts import TENSORS, under
from ..atomic import read_json, read_tensors
from ..config import Config
from ..errors import UserError
from .normaliser import STATISTICS, Normaliser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Model = TypeVar("Model", bound=BaseModel)
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"
OLD_STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
HARMLESS_STEPS = {"rename_observations_processor", "to_batch_processor", "device_processor"}  # names, batch dimension, device: this project's own


class TokenizerSettings(Config):
    """How an instruction becomes tokens."""

    name: str = Field(description="folder in or beside the checkpoint, or a name on the Hub")
    max_length: PositiveInt
    padding: Literal["longest", "max_length"]
    padding_side: Literal["left", "right"] = "right"
    newline: bool = Field(True, description="an instruction ends in a line break; one is appended where it does not")


@dataclass(frozen=True, eq=False)
class LeRobotCheckpoint:
    folder: Path
    config: dict  # config.json as it is
    image_keys: list[str]  # cameras in the order in which the model sees them, without "observation.images."
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

    def tokenizer(self, folder: Path) -> "PreTrainedTokenizerBase":
        """The tokenizer named in the settings: a folder inside or beside `folder`, or else from the Hub (HF_HUB_OFFLINE is honoured)."""
        from transformers import AutoTokenizer

        name = self.tokenizer_settings.name
        try:
            return AutoTokenizer.from_pretrained(beside(folder, name), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: {not_found('tokenizer', name, error)}") from error

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


def read_lerobot(folder: Path, expected_type: str) -> LeRobotCheckpoint:
    """All but the weights. Raises UserError where a file, field or statistic is missing or does not fit the rest."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        inside = "; its folder pretrained_model does: name that one" if (folder / "pretrained_model" / "config.json").is_file() else ""
        raise UserError(f"{folder} holds no config.json{inside or ': expected a checkpoint written by lerobot; check the path'}")
    config = read_json(path)
    if config.get("type") != expected_type:
        raise UserError(f"{path} is of type {config.get('type')!r}: expected {expected_type!r}; name another checkpoint, or the policy it is of")
    fields = validated(_PolicyFields, config, path)
    state_size, action_size = fields.size(STATE, path), fields.size(ACTION, path)
    if state_size > fields.max_state_dim or action_size > fields.max_action_dim:
        found = f"max_state_dim {fields.max_state_dim} and max_action_dim {fields.max_action_dim}"
        raise UserError(f"{path} has {found}: expected at least {state_size} and {action_size}, the sizes of its features; mend it")
    processed = _processors(folder, fields) if (folder / PREPROCESSOR).is_file() else _old_style(folder, fields, config)
    seen = {name.removeprefix(IMAGES): feature.shape for name, feature in fields.input_features.items() if name.startswith(IMAGES)}
    cameras = {name: shape[-2:] for name, shape in seen.items() if len(shape) == 3 and not name.startswith("empty_camera_")}
    if not cameras:
        raise UserError(f"{path}: input_features lists no {IMAGES}* of shape (3, H, W): expected one camera or more; mend it")
    # the pair in `resize_imgs_with_padding` is used as (width, height), the one in `image_resolution` as (height, width)
    resize = fields.image_resolution or (fields.resize_imgs_with_padding and fields.resize_imgs_with_padding[::-1])
    return LeRobotCheckpoint(
        folder=folder,
        config=config,
        image_keys=list(cameras),
        image_shapes=cameras,
        image_size=resize or next(iter(cameras.values())),
        empty_cameras=fields.empty_cameras,
        state_size=state_size,
        action_size=action_size,
        max_state=fields.max_state_dim,
        max_action=fields.max_action_dim,
        chunk=fields.chunk_size,
        steps=fields.steps,
        state_normaliser=processed[0],
        action_normaliser=processed[1],
        tokenizer_settings=processed[2],
    )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, mapped from disk, without the statistics that earlier versions kept among them and torch.compile's prefix."""
    tensors = read_tensors(_existing(Path(folder) / TENSORS))
    return {name.replace("._orig_mod.", "."): tensor for name, tensor in tensors.items() if not name.startswith(OLD_STATISTICS)}


def beside(folder: Path, name: str) -> str:
    """`name` as a folder inside or beside `folder`, where there is one; otherwise it is left for the Hub. Raises UserError for any other path."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{folder}: names {name!r}, expected a folder of its own or a name on the Hub; do not trust this checkpoint")
    for parent in (Path(folder), Path(folder).absolute().parent):
        if (parent / name).is_dir():
            return str(parent / name)
    return name


def validated(model: type[Model], value: dict, path: Path) -> Model:
    """`value` as `model`; raises UserError with every field of `path` that does not fit."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}, found {one['input']!r:.60}" for one in error.errors())
        raise UserError(f"{path}: {problems}; expected what lerobot writes: mend it or download it again") from error


def not_found(what: str, name: str, error: Exception) -> str:
    """The end of a message on something that is neither in a folder nor to be had from the Hub."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"its {what} {name!r} could not be loaded ({reason}): put a folder {name} beside the checkpoint, or let it be downloaded: "
        "unset HF_HUB_OFFLINE and, where it is gated, accept its terms on the Hub and run `hf auth login`"
    )


class _Feature(BaseModel):
    type: str
    shape: tuple[PositiveInt, ...]


class _PolicyFields(BaseModel):
    """What is needed of config.json; the rest of it concerns training."""

    input_features: dict[str, _Feature]
    output_features: dict[str, _Feature]
    chunk_size: PositiveInt
    max_state_dim: PositiveInt
    max_action_dim: PositiveInt
    steps: PositiveInt = Field(validation_alias=AliasChoices("num_steps", "num_inference_steps"))
    image_resolution: tuple[PositiveInt, PositiveInt] | None = None
    resize_imgs_with_padding: tuple[PositiveInt, PositiveInt] | None = None
    empty_cameras: int = Field(0, ge=0)
    normalization_mapping: dict[str, str] = {}
    adapt_to_pi_aloha: Literal[False] = False  # other units of states and actions, which nobody has needed here
    use_delta_joint_actions_aloha: Literal[False] = False

    def size(self, name: str, path: Path) -> int:
        feature = (self.output_features if name == ACTION else self.input_features).get(name)
        if feature is None or len(feature.shape) != 1:
            found = "missing" if feature is None else f"of shape {feature.shape}"
            raise UserError(f"{path}: the feature {name} is {found}: expected a vector, such as {{'shape': [7]}}; mend it")
        return feature.shape[0]


class _StepConfig(BaseModel, extra="allow"):
    enabled: bool = True
    eps: float = Field(1e-8, ge=0)
    norm_map: dict[str, str] = {}


class _Step(BaseModel):
    name: str = Field(validation_alias=AliasChoices("registry_name", "class"))
    config: _StepConfig = _StepConfig()
    state_file: str | None = None


class _Pipeline(BaseModel):
    steps: list[_Step]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected it in a checkpoint written by lerobot; download the whole folder again")
    return path


def _processors(folder: Path, fields: _PolicyFields) -> tuple[Normaliser, Normaliser, TokenizerSettings]:
    """Everything that the two pipelines say; a step that would change numbers in a way unknown here is refused."""
    before = _steps(folder / PREPROCESSOR, {"normalizer_processor", "tokenizer_processor"}, newline=True)
    after = _steps(_existing(folder / POSTPROCESSOR), {"unnormalizer_processor"})
    state = _normaliser(folder / PREPROCESSOR, before["normalizer_processor"], STATE, "STATE", fields)
    action = _normaliser(folder / POSTPROCESSOR, after["unnormalizer_processor"], ACTION, "ACTION", fields)
    learnt = _normaliser(folder / PREPROCESSOR, before["normalizer_processor"], ACTION, "ACTION", fields)
    if learnt.known and (learnt.mode != action.mode or not torch.equal(learnt.scale, action.scale) or not torch.equal(learnt.offset, action.offset)):
        raise UserError(f"{folder}: {PREPROCESSOR} normalises actions otherwise than {POSTPROCESSOR} undoes it; take both from the same checkpoint")
    found = before["tokenizer_processor"].config.model_extra
    given = {key: found[key] for key in ("max_length", "padding", "padding_side") if key in found}
    given |= {"name": found.get("tokenizer_name"), "newline": any(name.endswith("new_line_processor") for name in before)}
    return state, action, validated(TokenizerSettings, given, folder / PREPROCESSOR)


def _steps(path: Path, needed: set[str], newline: bool = False) -> dict[str, _Step]:
    """A pipeline's steps by name. Steps that are switched off are left out."""
    steps = {step.name: step for step in validated(_Pipeline, read_json(path), path).steps if step.config.enabled}
    unknown = [name for name in steps if name not in needed | HARMLESS_STEPS and not (newline and name.endswith("new_line_processor"))]
    missing = sorted(needed - steps.keys())
    if unknown or missing:
        found = f"has steps that are not known here ({', '.join(unknown)})" if unknown else f"lacks {', '.join(missing)}"
        raise UserError(f"{path} {found}: expected {', '.join(sorted(needed | HARMLESS_STEPS))}; use a checkpoint without them, saved by lerobot 0.4")
    return steps


def _normaliser(path: Path, step: _Step, name: str, kind: str, fields: _PolicyFields) -> Normaliser:
    if step.state_file is not None and Path(step.state_file).name != step.state_file:
        raise UserError(f"{path}: state_file is {step.state_file!r}, expected a file beside it; do not trust this checkpoint")
    file = path if step.state_file is None else _existing(path.parent / step.state_file)
    tensors = {} if step.state_file is None else read_tensors(file)
    based = not any(key.startswith((f"{STATE}.", f"{ACTION}.")) for key in tensors)  # a base model, which belongs to no robot yet
    return _fitted(file, step.config.norm_map, kind, fields.size(name, path), None if based else under(f"{name}.", tensors), step.config.eps, name)


def _old_style(folder: Path, fields: _PolicyFields, config: dict) -> tuple[Normaliser, Normaliser, TokenizerSettings]:
    """Statistics as lerobot kept them before 0.4: `normalize_inputs.buffer_observation_state.mean` in model.safetensors."""
    path = _existing(folder / TENSORS)
    tensors = {name: tensor for name, tensor in read_tensors(path).items() if name.startswith(OLD_STATISTICS)}
    if not tensors:
        raise UserError(f"{folder} holds no {PREPROCESSOR}, and {TENSORS} no statistics: expected either; download the whole folder again")

    def of(prefix: str, name: str, kind: str) -> Normaliser:
        statistics = under(f"{prefix}buffer_{name.replace('.', '_')}.", tensors) or None
        return _fitted(path, fields.normalization_mapping, kind, fields.size(name, folder / "config.json"), statistics, 1e-8, name)

    given = {"name": config.get("vlm_model_name", "google/paligemma-3b-pt-224"), "max_length": config.get("tokenizer_max_length")}
    settings = validated(TokenizerSettings, given | {"padding": config.get("pad_language_to", "max_length")}, folder / "config.json")
    return of("normalize_inputs.", STATE, "STATE"), of("unnormalize_outputs.", ACTION, "ACTION"), settings


def _fitted(path: Path, modes: dict, kind: str, size: int, statistics: dict[str, Tensor] | None, eps: float, name: str) -> Normaliser:
    mode = modes.get(kind, "IDENTITY")
    if mode not in STATISTICS:
        raise UserError(f"{path}: {name} is normalised by {mode!r}: expected one of {', '.join(STATISTICS)}; use a checkpoint trained with one")
    for statistic in STATISTICS[mode] if statistics is not None else ():
        found = statistics.get(statistic)
        if found is None:
            problem = f"missing: mode {mode} needs it"
        elif tuple(found.shape) != (size,):
            problem = f"of shape {tuple(found.shape)}: config.json expects ({size},), so these statistics are another robot's"
        elif not found.isfinite().all():
            problem = "not finite: expected numbers"
        else:
            continue
        raise UserError(f"{path}: {name}.{statistic} is {problem}; take the file from the checkpoint it belongs to")
    return Normaliser(mode, size, statistics, eps)
