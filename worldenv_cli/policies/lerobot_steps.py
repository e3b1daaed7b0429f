"""lerobot's pipelines around a policy: how states and actions are normalised and instructions become tokens.

Since lerobot 0.4 two files list their steps, each with the safetensors file of its statistics. Earlier versions keep statistics among the weights.
What config.json declares of sizes is often the base model's: the statistics say what the policy was trained with.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from pydantic import AliasChoices, BaseModel, Field, ValidationError
from torch import Tensor

from ..artifacts import TENSORS, under
from ..atomic import read_json, read_tensors
from ..config import Config
from ..confine import inside
from ..errors import UserError
from .normaliser import STATISTICS, Normaliser

Model = TypeVar("Model", bound=BaseModel)
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
STATE, ACTION = "observation.state", "action"
OLD_STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
HARMLESS_STEPS = {"rename_observations_processor", "to_batch_processor", "device_processor"}  # names, batch dimension, device: this project's own
MOST = 4096  # numbers of a state or an action, tokens of an instruction


class TokenizerSettings(Config):
    """How an instruction becomes tokens."""

    name: str = Field(description="folder in or beside the checkpoint, or a name on the Hub")
    max_length: int = Field(ge=1, le=MOST)
    padding: Literal["longest", "max_length"]
    padding_side: Literal["left", "right"] = "right"
    newline: bool = Field(True, description="an instruction ends in a line break; one is appended where it does not")


@dataclass(frozen=True, eq=False)
class Processing:
    """What the pipelines say. A normaliser without statistics is not `known`."""

    state: Normaliser
    action: Normaliser
    tokenizer: TokenizerSettings
    others: tuple[str, ...] = ()  # data sets whose statistics lie there under names of their own, as a base model's do


def validated(model: type[Model], value: dict, path: Path) -> Model:
    """`value` as `model`; raises UserError with every field of `path` that does not fit."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}, found {one['input']!r:.60}" for one in error.errors()[:5])
        raise UserError(f"{path}: {problems}; expected what lerobot 0.4 to 0.6 writes") from error


class _StepConfig(BaseModel, extra="allow"):
    enabled: bool = True
    eps: float = Field(1e-8, ge=0, le=1)
    norm_map: dict[str, str] = {}


class _Step(BaseModel):
    name: str = Field(validation_alias=AliasChoices("registry_name", "class"))
    config: _StepConfig = _StepConfig()
    state_file: str | None = None


class _Pipeline(BaseModel):
    steps: list[_Step]


def read_processing(folder: Path, sizes: dict[str, int], config: dict, statistics: bool) -> Processing:
    """From both pipelines, or what came before them. `sizes` {feature: numbers} are those that config.json declares.

    Without `statistics` none are read, and the normalisers have the declared sizes. Raises UserError for a step that would change numbers in a way
    unknown here, for a file outside of the folder, and for statistics that contradict each other.
    """
    path = inside(folder, PREPROCESSOR, folder)
    return _of_pipelines(folder, sizes, statistics) if path.is_file() else _of_weights(folder, sizes, config, statistics)


def _of_pipelines(folder: Path, sizes: dict[str, int], wanted: bool) -> Processing:
    before = _steps(folder, PREPROCESSOR, {"normalizer_processor", "tokenizer_processor"}, newline=True)
    after = _steps(folder, POSTPROCESSOR, {"unnormalizer_processor"})
    first, last = before["normalizer_processor"], after["unnormalizer_processor"]
    numbers, others = _statistics(folder, first, wanted)
    outward, _ = _statistics(folder, last, wanted)
    state = _normaliser(_source(folder, PREPROCESSOR, first), first, STATE, sizes[STATE], numbers)
    action = _normaliser(_source(folder, POSTPROCESSOR, last), last, ACTION, sizes[ACTION], outward)
    learnt = _normaliser(_source(folder, PREPROCESSOR, first), first, ACTION, sizes[ACTION], numbers)
    if learnt.known and action.known and not _alike(learnt, action):
        raise UserError(f"{folder}: {PREPROCESSOR} normalises actions otherwise than {POSTPROCESSOR} undoes it: the two are not of one training")
    found = before["tokenizer_processor"].config.model_extra
    given = {key: found[key] for key in ("max_length", "padding", "padding_side") if key in found}
    given |= {"name": found.get("tokenizer_name"), "newline": any(name.endswith("new_line_processor") for name in before)}
    return Processing(state, action, validated(TokenizerSettings, given, folder / PREPROCESSOR), others)


def _alike(first: Normaliser, second: Normaliser) -> bool:
    return first.mode == second.mode and torch.equal(first.scale, second.scale) and torch.equal(first.offset, second.offset)


def _steps(folder: Path, name: str, needed: set[str], newline: bool = False) -> dict[str, _Step]:
    """A pipeline's steps by name, without those that are switched off. The files of all of them must lie in the folder: they are copied later."""
    path = inside(folder, name, folder)
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected it beside {PREPROCESSOR}, which lerobot writes with it; copy the whole folder")
    pipeline = validated(_Pipeline, read_json(path), path)
    for step in pipeline.steps:
        if step.state_file is not None:
            inside(folder, step.state_file, path)
    steps = {step.name: step for step in pipeline.steps if step.config.enabled}
    unknown = [step for step in steps if step not in needed | HARMLESS_STEPS and not (newline and step.endswith("new_line_processor"))]
    missing = sorted(needed - steps.keys())
    if unknown:
        raise UserError(f"{path}: its steps {', '.join(unknown)} are switched on and not supported: use a checkpoint that was trained without them")
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}, which a policy of lerobot 0.4 or later has: it is not of this checkpoint")
    return steps


def _source(folder: Path, pipeline: str, step: _Step) -> Path:
    return folder / (pipeline if step.state_file is None else step.state_file)


def _statistics(folder: Path, step: _Step, wanted: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """({"observation.state.mean": ...}, data sets whose statistics are there under other names) of a step's file."""
    if not wanted or step.state_file is None:
        return {}, ()
    path = folder / step.state_file
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected the statistics that the pipeline beside it names; copy the whole folder")
    tensors = read_tensors(path)
    own = {name: tensor for name, tensor in tensors.items() if name.startswith((f"{STATE}.", f"{ACTION}."))}
    others = {name.partition(".buffer")[0] for name in tensors if ".buffer" in name}
    return own, tuple(sorted(others))


def _normaliser(path: Path, step: _Step, name: str, size: int, numbers: dict[str, Tensor]) -> Normaliser:
    """Not known where there are no statistics at all; of a base model, which belongs to no robot yet, there are none under its features' names."""
    kind = "STATE" if name == STATE else "ACTION"
    return _fitted(path, step.config.norm_map, kind, size, under(f"{name}.", numbers) if numbers else None, step.config.eps, name)


def _of_weights(folder: Path, sizes: dict[str, int], config: dict, wanted: bool) -> Processing:
    """As lerobot kept them before 0.4: `normalize_inputs.buffer_observation_state.mean` in model.safetensors."""
    path, tensors = inside(folder, TENSORS, folder), {}
    if wanted and path.is_file():
        tensors = {name: tensor for name, tensor in read_tensors(path).items() if name.startswith(OLD_STATISTICS)}
        if not tensors:
            raise UserError(
                f"{folder} holds no {PREPROCESSOR}, and {TENSORS} no statistics: expected either, as lerobot writes them; copy the whole folder, "
                "or set policy.statistics=dataset"
            )

    def of(prefix: str, name: str, kind: str) -> Normaliser:
        statistics = under(f"{prefix}buffer_{name.replace('.', '_')}.", tensors) or None
        return _fitted(path, config.get("normalization_mapping") or {}, kind, sizes[name], statistics, 1e-8, name)

    given = {"name": config.get("vlm_model_name", "google/paligemma-3b-pt-224"), "max_length": config.get("tokenizer_max_length")}
    settings = validated(TokenizerSettings, given | {"padding": config.get("pad_language_to", "max_length")}, folder / "config.json")
    return Processing(of("normalize_inputs.", STATE, "STATE"), of("unnormalize_outputs.", ACTION, "ACTION"), settings)


def _fitted(path: Path, modes: dict, kind: str, size: int, statistics: dict[str, Tensor] | None, eps: float, name: str) -> Normaliser:
    """The statistics' own size counts: a config.json often declares the base model's."""
    mode = modes.get(kind, "IDENTITY")
    if mode not in STATISTICS:
        raise UserError(f"{path}: {name} is normalised by {mode!r}: expected one of {', '.join(STATISTICS)}; use a checkpoint trained with one")
    needed = STATISTICS[mode] if statistics is not None else ()
    for statistic in needed:
        found = statistics.get(statistic)
        if found is None:
            problem = f"missing: mode {mode} needs it"
        elif found.ndim != 1 or not 0 < len(found) <= MOST or found.shape != statistics[needed[0]].shape:
            problem = f"of shape {tuple(found.shape)}: expected one number for each of the feature's, in {' and '.join(needed)} alike"
        elif found.is_complex() or found.is_floating_point() and found.element_size() < 2:
            problem = f"of type {str(found.dtype).removeprefix('torch.')}: expected float32"
        elif not found.isfinite().all():
            problem = "not finite: expected numbers"
        else:
            continue
        raise UserError(f"{path}: {name}.{statistic} is {problem}; to fine-tune on your own demonstrations: policy.statistics=dataset")
    return Normaliser(mode, len(statistics[needed[0]]) if needed else size, statistics, eps)
