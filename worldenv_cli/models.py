"""Policies, simulators and reflectors as artifacts: one way to save them and one to load them.

A compact policy is saved whole. Of a VLA only what was learned is: adapters, heads, statistics; the checkpoint is named in its config.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from .artifacts import load_config, load_into, load_tensors, under, write_artifact
from .atomic import read_json
from .confine import inside
from .destination import kind_of
from .errors import UserError
from .hub import REFERENCE, downloaded, resolve
from .policies.chosen import ChosenPolicy
from .policies.compact import CompactPolicy, CompactPolicyConfig
from .policies.load import load_vla
from .policies.lora import AdaptedPolicy, LoraSettings, learned_tensors
from .policies.parts import REFUSALS, told_by
from .policies.policy import Policy
from .policies.vla import VLAConfig, pinned
from .reflector.compact import Reflector, ReflectorConfig
from .simulator.simulator import Simulator, SimulatorConfig

OWN_CHECKPOINT = ".."  # policy.model of an artifact that lies in the folder `worldenv` of its own checkpoint
INNER = "worldenv"  # that folder: config.json beside the checkpoint's own would be in its way
OTHERS = {"simulator": (SimulatorConfig, Simulator), "reflector": (ReflectorConfig, Reflector)}


def save_model(folder: Path, kind: str, model: nn.Module, provenance: dict, card: str) -> None:
    """Write a model's files into `folder` (see artifacts.staged for doing so in one piece)."""
    config, tensors = _policy_parts(model) if kind == "policy" else ({kind: model.config.model_dump(mode="json")}, model.state_dict())
    write_artifact(folder, kind, config, {name: tensor.contiguous() for name, tensor in tensors.items()}, provenance, card)


def _policy_parts(policy: Policy) -> tuple[dict, dict[str, Tensor]]:
    """(config, tensors) of any policy."""
    if isinstance(policy, ChosenPolicy):
        parts = {name: _policy_parts(member) for name, member in policy.members.items()}
        config = {"members": {name: config for name, (config, _) in parts.items()}, "choice": policy.choice, "default": policy.default}
        return config, {f"members.{name}.{key}": tensor for name, (_, tensors) in parts.items() for key, tensor in tensors.items()}
    base = policy.base()
    found = pinned(base.config) if isinstance(base.config, VLAConfig) else base.config
    config, tensors = {"policy": found.model_dump(mode="json")}, policy.state_dict()
    if isinstance(base.config, VLAConfig):
        config |= {"merged": [settings.model_dump(mode="json") for settings, _ in base.merged_adapters]}
        tensors = learned_tensors(policy)
        for number, (_, adapter) in enumerate(base.merged_adapters):
            tensors |= {f"merged.{number}.{name}": tensor for name, tensor in adapter.items()}
    if isinstance(policy, AdaptedPolicy):
        config |= {"lora": policy.settings.model_dump(mode="json")}
    return config, tensors


def adapter_settings(config: dict, name: str = "", beginning: str = "") -> list[tuple[str, str, LoraSettings]]:
    """[(name, how the names of its tensors begin, settings)] of every adapter in a policy's config, in the order in which they are put on."""
    if isinstance(config.get("members"), dict):
        parts = config["members"].items()
        return [one for member, part in parts if isinstance(part, dict) for one in adapter_settings(part, f"{member}/", f"members.{member}.")]
    merged, last = list(config.get("merged", ())), config.get("lora")
    found = [(f"{name}{number}", f"{beginning}merged.{number}.", LoraSettings.model_validate(one)) for number, one in enumerate(merged)]
    return found + ([(f"{name}{len(merged)}", f"{beginning}model.", LoraSettings.model_validate(last))] if last else [])


def new_policy(config: CompactPolicyConfig | VLAConfig, device: torch.device | str = "cpu", weights: bool = True) -> Policy:
    """A new policy: a compact one untrained, a VLA as its checkpoint has it, or without `weights` of shapes only."""
    return load_vla(config, device, weights) if isinstance(config, VLAConfig) else CompactPolicy(config).to(device)


def load_model(reference: str | Path, kind: str, made_by: str = "make it first", device: torch.device | str = "cpu"):
    """The model of an artifact folder, or of a Hub reference given as str `owner/name[/folder][@revision]`, in evaluation mode.

    A policy with an adapter, or of several members, comes back as such.

    Raises UserError for a missing folder, another kind or version, a truncated file, unknown settings, missing or unexpected tensors.
    """
    folder = _artifact_in(resolve(reference) if isinstance(reference, str) else Path(reference))
    found = load_config(folder, kind, made_by)
    if downloaded(folder) is not None:
        check_names(found, folder / "config.json")
    if kind == "policy" and _is_split(found):
        return _members(found, folder, device)
    tensors = load_tensors(folder)
    try:
        if kind == "policy":
            return _policy(found, tensors, folder, device).eval()
        config_class, model_class = OTHERS[kind]
        config = config_class.model_validate(found.get(kind))
        check_sizes(model_class, config, tensors, folder)
        model = model_class(config)
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(str(part) for part in (kind, *wrong["loc"]))
        raise UserError(f"{folder / 'config.json'}: {field}: {wrong['msg']}; make the {kind} again with this version") from error
    load_into(model, tensors, folder)
    return model.to(device).eval()


def check_names(found, path: Path) -> None:
    """What a downloaded artifact is made on must come along or from the Hub, where only data is read of it, never code: no folder of this machine."""
    for key, value in found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ():
        if key in ("model", "pretrained") and isinstance(value, str) and value != OWN_CHECKPOINT and not REFERENCE.fullmatch(value):
            raise UserError(f"{path}: {key} is {value!r:.200}, expected owner/name[@revision] on the Hub; push the policy with --merged")
        check_names(value, path)


def check_sizes(build: Callable[..., nn.Module], config, tensors: dict[str, Tensor], folder: Path) -> None:
    """Raise UserError where `config` declares more layers or numbers than the artifact holds: that much would be allocated before it is missed."""
    declared = config.model_dump()
    layers = max(_layers(declared))
    if layers > len(tensors):
        raise UserError(f"{folder / 'config.json'}: layers is {layers}, but the weights are {len(tensors)} tensors; they are not of one model")
    text = getattr(config, "text", None)
    borrowed = text is not None and text.pretrained is not None  # its weights are elsewhere, and held against their own files
    if borrowed:
        config = config.model_copy(update={"text": text.model_copy(update={"pretrained": None})})
    try:
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in build(config).state_dict().items() if not (borrowed and name.startswith("text."))}
    except REFUSALS as error:
        raise UserError(f"{folder / 'config.json'}: nothing of these sizes can be built ({told_by(error):.100}); make it again") from error
    wanted, held = (sum(math.prod(shape) for shape in sizes) for sizes in (shapes.values(), [tensor.shape for tensor in tensors.values()]))
    if wanted > held:
        raise UserError(f"{folder / 'config.json'}: declares {wanted:,} numbers, but the weights are {held:,}; they are not of one model")


def _layers(declared: dict) -> list[int]:
    inner = [number for value in declared.values() if isinstance(value, dict) for number in _layers(value)]
    return [declared.get("layers", 0), *inner]


def _check_choice(found: dict, folder: Path) -> None:
    """Every instruction must be somebody's: rows of one that names no member would be dropped without a word."""
    members, choice = found["members"], found.get("choice")
    whole = isinstance(members, dict) and members and (_is_split(found) or all(isinstance(one, dict) for one in members.values()))
    if not whole or not isinstance(choice, dict):
        raise UserError(f"{folder / 'config.json'}: members or choice is missing, expected policies by name and {{instruction: name}}; make it again")
    default = found.get("default")  # None: another wording is refused
    if not choice and default is None:
        raise UserError(f"{folder / 'config.json'}: choice is empty and there is no default, so nothing can be played; make the policy again")
    unknown = sorted({repr(name) for name in [*choice.values(), *([] if default is None else [default])] if name not in list(members)})
    if unknown:
        names = ", ".join(members)
        raise UserError(f"{folder / 'config.json'}: choice or default names {', '.join(unknown)}, expected one of {names}; make the policy again")


def _artifact_in(folder: Path) -> Path:
    """The artifact of a folder: itself, or where it is a checkpoint in another project's layout the one inside of it."""
    inner = folder / INNER
    return inner if kind_of(folder) is None and kind_of(inner) is not None else folder


def _is_split(found: dict) -> bool:
    """Whether each member has a folder of its own."""
    members = found.get("members")
    return isinstance(members, dict) and all(isinstance(one, str) for one in members.values())


def _members(found: dict, folder: Path, device) -> ChosenPolicy:
    _check_choice(found, folder)
    places = {name: inside(folder, where, folder / "config.json") for name, where in found["members"].items()}
    for name, place in places.items():
        path = _artifact_in(place) / "config.json"
        if path.is_file() and "members" in read_json(path):
            raise UserError(f"{path}: the member {name!r:.100} has members itself, expected a single policy; make the policy again")
    members = {name: load_model(place, "policy", device=device) for name, place in places.items()}
    return ChosenPolicy(members, found["choice"], found.get("default"))


def _policy(found: dict, tensors: dict[str, Tensor], folder: Path, device) -> Policy:
    """The inverse of `_policy_parts`."""
    if "members" in found:
        _check_choice(found, folder)
        members = {name: _policy(one, under(f"members.{name}.", tensors), folder, device) for name, one in found["members"].items()}
        return ChosenPolicy(members, found["choice"], found.get("default"))
    wanted = found.get("policy")
    vla = isinstance(wanted, dict) and "model" in wanted
    if vla and wanted["model"] == OWN_CHECKPOINT:
        if folder.name != INNER:
            raise UserError(f"{folder / 'config.json'}: policy.model is {OWN_CHECKPOINT!r}, expected that in a folder {INNER} alone; do not trust it")
        wanted = wanted | {"model": str(folder.absolute().parent)}
    config = (VLAConfig if vla else CompactPolicyConfig).model_validate(wanted)
    if not vla:
        check_sizes(CompactPolicy, config, tensors, folder)
    policy = new_policy(config, device)
    merged = found.get("merged", [])
    if not isinstance(merged, list):
        raise UserError(f"{folder / 'config.json'}: merged is {merged!r:.40}, expected a list of adapters; make the policy again")
    for number, settings in enumerate(merged):
        adapter = under(f"merged.{number}.", tensors)
        policy = _adapted(policy, settings, adapter, folder)
        load_into(policy, adapter, folder, of=policy.adapter_tensors())
        policy = policy.merged()
    if "lora" in found:
        policy = _adapted(policy, found["lora"], tensors, folder)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("merged.")}
    load_into(policy, own, folder, of=learned_tensors(policy) if vla else None)
    return policy


def _adapted(policy: Policy, settings: dict, tensors: dict[str, Tensor], folder: Path) -> AdaptedPolicy:
    """With an adapter of the rank that its tensors have, and no other: it has memory before they are put in."""
    settings = LoraSettings.model_validate(settings)
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name and tensor.ndim and not name.startswith("merged.")}
    if settings.rank not in ranks:
        found = ", ".join(map(str, sorted(ranks))) or "missing"
        raise UserError(f"{folder / 'config.json'}: an adapter of rank {settings.rank}, but its tensors are {found}; make the policy again")
    try:
        return AdaptedPolicy(policy, settings)
    except (ValueError, re.error) as error:
        raise UserError(f"{folder / 'config.json'}: an adapter that does not fit the policy ({told_by(error):.200}); make it again") from error
