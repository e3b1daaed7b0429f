"""The recipe: one YAML file that says everything about a run, `--set a.b=c` on top of it, and what to say when it is wrong."""

import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import PydanticUndefined

from .config import Config
from .data.config import ExploreConfig, IngestConfig
from .envs.config import EnvConfig, WorldEnvConfig
from .errors import UserError
from .evaluation.config import EvalConfig
from .policies.config import CompactPolicyConfig, SFTConfig, VLAConfig
from .post_train.config import PostTrainConfig
from .recipe_yaml import line_of, parse, read_text
from .reflector.config import CalibrateConfig, ReflectorConfig
from .shipped import SHIPPED
from .simulator.config import SimulateConfig, SimulatorConfig

C = TypeVar("C", bound=Config)


def _kind_of_policy(section: Any) -> str:
    return "vla" if isinstance(section, VLAConfig) or (isinstance(section, dict) and "model" in section) else "compact"


PolicyConfig = Annotated[Annotated[CompactPolicyConfig, Tag("compact")] | Annotated[VLAConfig, Tag("vla")], Discriminator(_kind_of_policy)]


class Recipe(Config):
    """Everything about a run; each section is described where it is used."""

    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=100, description="Name of the run and of its folder: letters, digits, dots and dashes")
    seed: int = Field(0, ge=0, description="Training seed: initial weights, batches, and the initial states of everything but the evaluation")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where models are computed; auto: on the GPU where there is one")
    out: str = Field("runs/{name}", description="Folder of the run; {name} stands for its name")
    env: EnvConfig = Field(description="The real environment: its tasks, and how every episode in it is seen and played")
    ingest: IngestConfig = Field(IngestConfig(), description="Where the demonstrations come from")
    policy: PolicyConfig = Field(
        CompactPolicyConfig(),
        description="A published checkpoint where `model` names one, otherwise a compact policy trained from scratch",
    )
    sft: SFTConfig = Field(SFTConfig(), description="Supervised fine-tuning on the demonstrations")
    explore: ExploreConfig = Field(ExploreConfig(), description="Rollouts of the fine-tuned policy, with noise, in the real environment")
    simulator: SimulatorConfig = Field(SimulatorConfig(), description="The world simulator: its sizes")
    simulate: SimulateConfig = Field(SimulateConfig(), description="How the world simulator is trained")
    reflector: ReflectorConfig = Field(ReflectorConfig(), description="The reflector: its sizes")
    calibrate: CalibrateConfig = Field(CalibrateConfig(), description="How the reflector is trained and calibrated")
    world_env: WorldEnvConfig = Field(WorldEnvConfig(), description="The imagined environment: simulator and reflector together")
    post_train: PostTrainConfig = Field(PostTrainConfig(), description="Post-training in imagination, in rounds")
    eval: EvalConfig = Field(EvalConfig(), description="The evaluation")

    @model_validator(mode="after")
    def _one_protocol(self) -> "Recipe":
        """Every model sees the pictures and moves by the chunks that the environment has; nothing else would be trained or played as meant."""
        picture = {"resolution": self.env.resolution, "camera": self.env.cameras[0]}
        chunk = {"chunk": self.env.chunk}
        seen = {"resolution": self.env.resolution, "cameras": self._vla_cameras()} if isinstance(self.policy, VLAConfig) else picture
        body = {"state_size": len(self.env.state_names), "action_size": len(self.env.action_names)}
        horizon = {"horizon": self.env.chunks * self.env.chunk}
        for name, wanted in (("policy", seen | chunk | body), ("simulator", picture | chunk), ("reflector", picture), ("world_env", horizon)):
            section = getattr(self, name)
            for key, value in wanted.items():
                if key in section.model_fields_set and getattr(section, key) != value:
                    raise ValueError(f"{name}.{key} is {getattr(section, key)!r}, but the environment has {value!r}; leave it out")
            # frozen for its readers; here it is still being made
            object.__setattr__(self, name, section.model_copy(update=wanted))
        self._check_size()
        if self.world_env.rows < self.post_train.updates.group:
            raise ValueError(
                f"world_env.rows is {self.world_env.rows}, less than one group of post_train.updates.group {self.post_train.updates.group}"
            )
        return self

    def _check_size(self) -> None:
        """Networks halve pictures, and need a size that can be halved as often."""
        size, steps = self.env.resolution, {name: getattr(self, name).size_step for name in ("policy", "simulator", "reflector")}
        step = math.lcm(*steps.values())
        if size % step:
            nearest = " or ".join(str(near) for near in (size // step * step, size // step * step + step) if near)
            each = ", ".join(f"{name} {one}" for name, one in steps.items())
            raise ValueError(f"env.resolution is {size}, expected a multiple of {step} pixels ({each}); choose {nearest}")

    def _vla_cameras(self) -> tuple[str, ...]:
        """The environment's, or those of them that the recipe chooses."""
        chosen = self.policy.cameras if "cameras" in self.policy.model_fields_set else self.env.cameras
        unknown = [camera for camera in chosen if camera not in self.env.cameras]
        if unknown:
            raise ValueError(f"policy.cameras names {unknown[0]!r}, but the environment has {', '.join(self.env.cameras)}; choose among those")
        return chosen

    @property
    def folder(self) -> Path:
        return Path(self.out.replace("{name}", self.name))


def load_recipe(path: str | Path, overrides: Sequence[str] = (), cls: type[C] = Recipe) -> C:
    """Read a recipe, by path or by the name of one in recipes/, with `a.b=c` overrides (values are YAML).

    Raises UserError for the first thing wrong: file and line, setting, what was found, what was expected.
    """
    path = _find(path)
    text = read_text(path)
    data = parse(text, str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: found {_shown(data)}, expected settings such as `name: my-run`; see `worldenv recipes` for examples")
    overridden = {}
    for override in overrides:
        overridden[_override(data, cls, override)] = override
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise UserError(_explained(error, data, cls, path, text, overridden)) from error


def resolved_yaml(recipe: Config) -> str:
    """The recipe with every default written out, fit to be loaded again."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=140)


# Reading


def _find(path: str | Path) -> Path:
    try:
        if Path(path).is_file():
            return Path(path)
    except (OSError, ValueError):  # a name too long, or no name at all
        pass
    shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    if str(path) in shipped:
        return SHIPPED / f"{path}.yaml"
    names = f" or one of {', '.join(shipped)}" if shipped else ""
    raise UserError(f"{_shown(str(path))[1:-1]}: no such recipe, expected a YAML file{names}{_near(str(path), shipped)}; check the path")


def _override(data: dict, cls: type[Config], override: str) -> tuple[str, ...]:
    """Write one `a.b=c` into `data`; returns its path as keys. Sections and lists that the file leaves out start from their defaults."""
    path, equals, value = override.partition("=")
    keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        raise UserError(f"--set {override!r}: expected setting=value, for example env.rows=8")
    place: Any = data
    for depth, key in enumerate(keys):
        where = ".".join(keys[:depth])
        if isinstance(place, list):
            if _number(key) is None or _number(key) >= len(place):
                here = f"expected a number from 0 to {len(place) - 1}" if place else "it is empty"
                raise UserError(f"--set {override!r}: {where} has no item {key!r}, {here}")
        elif isinstance(place, dict):
            known = known_settings(cls, keys[:depth])
            if known is not None and key not in known:
                raise UserError(f"--set {override!r}: {unknown_setting(keys[: depth + 1], known)}")
        else:
            raise UserError(f"--set {override!r}: {where} is {_shown(place)}, which has no settings inside; set {where} itself")
        index = _number(key) if isinstance(place, list) else key
        if depth == len(keys) - 1:
            place[index] = parse(value, f"--set {override!r}")
            return keys
        if isinstance(place, dict) and place.get(key) is None:
            place[key] = _default(cls, keys[: depth + 1])
        place = place[index]
    raise AssertionError("a path has at least one key")


def _number(key: str) -> int | None:
    """A place in a list; None for anything else."""
    return int(key) if key.isascii() and key.isdecimal() and len(key) < 10 else None


# What the schema knows about a path


def _inside(annotation: Any, key: str) -> list[Any]:
    """The annotations of what lies at `key` in something of that annotation: several for a union, none for a key it cannot have."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(key)
        return [field.annotation] if field else []
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return [arguments[1]]
    if origin in (list, tuple):
        return [arguments[_number(key)]] if origin is tuple and (_number(key) or 0) < len(arguments) and _number(key) is not None else [arguments[0]]
    if origin in (Union, types.UnionType):
        return [found for argument in arguments for found in _inside(argument, key)]
    if origin is Annotated and any(isinstance(mark, Tag) and mark.tag == key for mark in arguments[1:]):
        return [arguments[0]]  # the member of a union, as pydantic's locations name it
    return _inside(arguments[0], key) if origin is Annotated else []


def _at(cls: type[Config], keys: Sequence[str]) -> list[Any]:
    annotations: list[Any] = [cls]
    for key in keys:
        annotations = [found for annotation in annotations for found in _inside(annotation, str(key))]
    return annotations


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that something of that annotation may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return [section for argument in get_args(annotation) for section in _sections(argument)]
    return []


def known_settings(cls: type[Config], keys: Sequence[str]) -> list[str] | None:
    """Names of the settings that the section at `keys` has; None where names are free."""
    sections = [section for annotation in _at(cls, keys) for section in _sections(annotation)]
    return list(dict.fromkeys(name for section in sections for name in section.model_fields)) if sections else None


def _default(cls: type[Config], keys: Sequence[str]) -> Any:
    """What the setting at `keys` is when the file says nothing, as plain lists and dicts; an empty section where that is nothing."""
    for annotation in _at(cls, keys[:-1]):
        for section in _sections(annotation):
            field = section.model_fields.get(keys[-1])
            default = field.get_default(call_default_factory=True) if field else None
            if default is not None and default is not PydanticUndefined:
                # what a section leaves at its own default stays open, for the environment may have another value; not which section it is
                found = section.model_construct(**{keys[-1]: default}).model_dump(mode="json", include={keys[-1]}, exclude_unset=True)[keys[-1]]
                return found | {"kind": default.kind} if isinstance(default, BaseModel) and "kind" in type(default).model_fields else found
    return {}


# Messages


def _explained(error: ValidationError, data: dict, cls: type[Config], path: Path, text: str, overridden: dict[tuple[str, ...], str]) -> str:
    """One line for the first problem; an unknown setting comes first, because a misspelling also leaves something missing."""
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    keys = _keys(problem["loc"], data)
    set_by = [override for given, override in overridden.items() if keys[: len(given)] == given]
    where = f"--set {set_by[-1]!r}" if set_by else f"{path}{line_of(text, keys)}"
    field, kind, message = ".".join(keys), problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        return f"{where}: {unknown_setting(keys, known_settings(cls, problem['loc'][:-1]) or known_settings(cls, keys[:-1]) or [])}"
    if kind == "missing":
        return f"{where}: {field} is missing; expected {_expected(cls, keys)}"
    if kind == "union_tag_invalid":
        return f"{where}: {field}.kind: found {problem['ctx']['tag']!r}, expected {problem['ctx']['expected_tags'].replace(', ', ' or ')}"
    if kind in ("value_error", "assertion_error"):
        return f"{where}: {field or 'recipe'}: {message.partition(', ')[2]}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{where}: {field}: found {_shown(problem['input'])}, expected {_expected(cls, keys)}"
    if kind == "string_pattern_mismatch":
        message = f"Input should be text like {problem['ctx']['pattern']}"
    expected = message.partition(", unable")[0].replace("Input should be", "expected", 1)
    return f"{where}: {field}: found {_shown(problem['input'])}, {expected[0].lower() + expected[1:]}"


def _keys(location: tuple[int | str, ...], data: Any) -> tuple[str, ...]:
    """pydantic's location without the names of union members, which are no settings."""
    keys, place = [], data
    for part in location:
        if isinstance(place, dict) and part in place or isinstance(place, list) and isinstance(part, int) and part < len(place):
            keys.append(str(part))
            place = place[part]
        elif part == location[-1] and isinstance(place, dict):
            keys.append(str(part))
    return tuple(keys)


def _expected(cls: type[Config], keys: Sequence[str]) -> str:
    sections = [section for annotation in _at(cls, keys) for section in _sections(annotation)]
    if sections:
        return f"a section with {', '.join(dict.fromkeys(name for section in sections for name in section.model_fields))}"
    for annotation in _at(cls, keys[:-1]):
        for section in _sections(annotation):
            field = section.model_fields.get(keys[-1])
            if field:
                description = field.description or getattr(field.annotation, "__name__", str(field.annotation))
                return description[0].lower() + description[1:]
    return "a value"


def unknown_setting(keys: Sequence[str], known: Sequence[str]) -> str:
    return f"unknown setting {'.'.join(keys)}{_near(keys[-1], known)}; {'.'.join(keys[:-1]) or 'the recipe'} has {', '.join(known)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _near(name: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]}?" if near else ""
