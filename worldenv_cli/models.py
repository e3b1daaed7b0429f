"""Policies, simulators and reflectors as artifacts: one way to save them and one to load them."""

from pathlib import Path

from pydantic import ValidationError
from torch import nn

from .artifacts import load_config, load_into, load_tensors, write_artifact
from .errors import UserError
from .hub import resolve
from .policies.chosen import ChosenPolicy
from .policies.compact import CompactPolicy, CompactPolicyConfig
from .policies.lora import AdaptedPolicy, LoraSettings
from .reflector.compact import Reflector, ReflectorConfig
from .simulator.simulator import Simulator, SimulatorConfig

KINDS = {
    "policy": (CompactPolicyConfig, CompactPolicy),
    "simulator": (SimulatorConfig, Simulator),
    "reflector": (ReflectorConfig, Reflector),
}


def save_model(folder: Path, kind: str, model: nn.Module, provenance: dict, card: str) -> None:
    """Write a model's files into `folder` (see artifacts.staged for doing so in one piece)."""
    config = {kind: model.config.model_dump(mode="json")}
    if isinstance(model, AdaptedPolicy):
        config |= {"lora": _lora(model)}
    if isinstance(model, ChosenPolicy):
        config |= {"members": {name: _lora(member) for name, member in model.members.items()}, "choice": model.choice, "default": model.default}
    write_artifact(folder, kind, config, {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, provenance, card)


def _lora(policy: CompactPolicy | AdaptedPolicy) -> dict | None:
    return policy.settings.model_dump(mode="json") if isinstance(policy, AdaptedPolicy) else None


def load_model(reference: str | Path, kind: str, made_by: str = "make it first"):
    """The model of an artifact folder, or of a Hub reference given as str `owner/name[/folder][@revision]`, in evaluation mode.

    A policy with an adapter, or of several members, comes back as such.

    Raises UserError for a missing folder, another kind or version, a truncated file, unknown settings, missing or unexpected tensors.
    """
    folder = resolve(reference) if isinstance(reference, str) else reference
    found = load_config(folder, kind, made_by)
    config_class, model_class = KINDS[kind]
    try:
        config = config_class.model_validate(found.get(kind))
        if "members" in found:
            members = {name: _policy(config, lora) for name, lora in found["members"].items()}
            model = ChosenPolicy(members, found["choice"], found["default"])
        elif "lora" in found:
            model = _policy(config, found["lora"])
        else:
            model = model_class(config)
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(str(part) for part in (kind, *wrong["loc"]))
        raise UserError(f"{folder / 'config.json'}: {field}: {wrong['msg']}; make the {kind} again with this version") from error
    load_into(model, load_tensors(folder), folder)
    return model.eval()


def _policy(config: CompactPolicyConfig, lora: dict | None) -> CompactPolicy | AdaptedPolicy:
    return CompactPolicy(config) if lora is None else AdaptedPolicy(CompactPolicy(config), LoraSettings.model_validate(lora))
