"""A VLA's checkpoint again, in its own layout, with all adapters in its weights: what other projects open, and what needs no base model.

Only weights that adapters changed are replaced; every other tensor and file is the published one's. What turns answers into actions is written where
the layout keeps it, in the units of the recording: a dataset here holds `recorded = offset + unit * stored`, and so does a policy until it leaves.
OpenVLA-OFT's own code keeps heads as pickles; here they are safetensors of the same names.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..atomic import read_json, read_tensors, write_json, write_tensors
from ..confine import copy_files, inside
from ..data.actions import ActionScale
from ..errors import UserError
from .flow import FlowPolicy
from .kinds import family
from .lerobot_steps import ACTION, OLD_STATISTICS, POSTPROCESSOR, PREPROCESSOR, STATE
from .normaliser import STATISTICS, Normaliser
from .openvla.policy import OpenVLAPart
from .parts import beside, own_name
from .policy import Policy
from .vla import checkpoint_folder

PLAIN = (".json", ".txt", ".model", ".jinja")
HEADS = ("action_head", "proprio_projector")  # OpenVLA-OFT's files
NORMALISERS = {"normalizer_processor": PREPROCESSOR, "unnormalizer_processor": POSTPROCESSOR}
OWN_STATISTICS = "worldenv"  # name of the statistics that a run took from its demonstrations


def write_checkpoint(policy: Policy, place: Path, scale: ActionScale | None = None) -> None:
    """`policy` without an adapter of its own (see Policy.plain), its actions in recorded units; without `scale` they are as the policy plays them.

    Raises UserError where an adapter changed what files hold in another form, and for a file that is a link out of its checkpoint.
    """
    source = checkpoint_folder(policy.config)
    place.mkdir(parents=True, exist_ok=True)
    copy_files(source, place, lambda path: path.suffix in (*PLAIN, ".safetensors") and not _weights(path) and not path.name.startswith(HEADS))
    changed = _changed(policy, source)
    left = set(changed)
    for path in sorted(path for path in source.iterdir() if _weights(path)):
        left -= _with_changes(inside(source, path.name, source), place / path.name, changed)
    if left:
        raise UserError(f"{source}: adapters changed {sorted(left)[0]}, which its files hold in another form; push the adapters alone")
    scale = scale or ActionScale.identity(policy.config.action_size)
    if isinstance(policy, OpenVLAPart):
        _write_heads(policy, source, place)
        _write_bounds(policy, place, scale)
    elif isinstance(policy, FlowPolicy):
        if "type" not in read_json(place / "config.json"):
            _write_transformers_statistics(policy, place, scale)
        else:
            if not (place / PREPROCESSOR).is_file():
                _write_pipelines(policy, place)
            _write_statistics(policy, place, scale)
        _bring_folders(policy, place)


def _weights(path: Path) -> bool:
    return path.suffix == ".safetensors" and path.name.startswith("model")


def _changed(policy: Policy, source: Path) -> dict[str, Tensor]:
    """{published name: merged weight} of every module that an adapter has changed."""
    beginning, own = "model.base_model.model.model.", policy.model.state_dict()
    names = {name.removeprefix(beginning).partition(".lora_")[0] + ".weight" for _, adapter in policy.merged_adapters for name in adapter}
    kind = family(source)
    if kind == "openvla":
        from .openvla.checkpoint import published
    elif kind == "smolvla":
        from .smolvla.checkpoint import published
    else:
        from .pi0.checkpoint import published_in

        published = published_in(source)
    return {published(name): own[name] for name in names}


def _with_changes(path: Path, place: Path, changed: dict[str, Tensor]) -> set[str]:
    """One file of weights again; returns which of the changes it held. Weights keep the type that they were published in."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(inside(path.parent, path.name, path.parent), "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if not name.startswith(OLD_STATISTICS)}
    mine = tensors.keys() & changed.keys()
    for name in mine:
        tensors[name] = changed[name].detach().to("cpu", tensors[name].dtype).reshape(tensors[name].shape).contiguous()
    save_file(tensors, place, metadata)
    return mine


# lerobot: pi0 and SmolVLA


def _write_pipelines(policy: FlowPolicy, place: Path) -> None:
    """The two pipelines of lerobot 0.4, for a checkpoint of before, which kept statistics among its weights; they are filled by _write_statistics."""
    config, settings = read_json(place / "config.json"), policy.checkpoint.tokenizer_settings
    tokenizer = {"task_key": "task", "truncation": True, "tokenizer_name": settings.name}
    tokenizer |= {"max_length": settings.max_length, "padding": settings.padding, "padding_side": settings.padding_side}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    units = {"eps": policy.action_normaliser.eps, "norm_map": {"VISUAL": "IDENTITY"}}
    inputs, outputs = config["input_features"], config["output_features"]
    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        *([{"registry_name": f"{config['type']}_new_line_processor", "config": {}}] if settings.newline else []),
        {"registry_name": "tokenizer_processor", "config": tokenizer},
        device,
        {"registry_name": "normalizer_processor", "config": units | {"features": inputs | outputs}},
    ]
    after = [{"registry_name": "unnormalizer_processor", "config": units | {"features": outputs}}, device]
    for name, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after)):
        write_json(place / name, {"name": Path(name).stem, "steps": steps})


def _write_statistics(policy: FlowPolicy, place: Path, scale: ActionScale) -> None:
    """What the policy normalises by, into both pipelines; into config.json their sizes, and how many steps of a chunk are played."""
    if policy.action_normaliser.mode == "IDENTITY" and not scale.is_identity:  # the same map in a mode that can have other units
        ends = torch.ones_like(policy.action_normaliser.scale)
        policy.action_normaliser = Normaliser("MIN_MAX", len(ends), {"min": -ends, "max": ends})
    state, action = policy.state_normaliser, policy.action_normaliser
    sizes, modes = {STATE: [len(state.scale)], ACTION: [len(action.scale)]}, {"STATE": state.mode, "ACTION": action.mode}
    statistics = _lerobot_statistics(STATE, state, modes["STATE"], ActionScale.identity(*sizes[STATE]))
    statistics |= _lerobot_statistics(ACTION, action, modes["ACTION"], scale)
    for registered, pipeline in NORMALISERS.items():
        content = read_json(place / pipeline)
        for number, step in enumerate(content["steps"]):
            for name, feature in step["config"].get("features", {}).items():
                feature["shape"] = sizes.get(name, feature["shape"])
            if step.get("registry_name") != registered or not step["config"].get("enabled", True):
                continue
            step["config"]["norm_map"] = step["config"].get("norm_map", {}) | modes
            name = step.get("state_file") or f"{Path(pipeline).stem}_step_{number}_{registered}.safetensors"
            path, step["state_file"] = inside(place, name, place / pipeline), name
            others = read_tensors(path) if path.is_file() else {}
            write_tensors(path, {key: value for key, value in others.items() if not key.startswith((f"{STATE}.", f"{ACTION}."))} | statistics)
        write_json(place / pipeline, content)
    config = read_json(place / "config.json")
    for name, feature in (config["input_features"] | config["output_features"]).items():
        feature["shape"] = sizes.get(name, feature["shape"])
    if "normalization_mapping" in config:
        config["normalization_mapping"] |= modes
    config["n_action_steps"] = policy.config.chunk  # those that were tuned and measured
    (place / "config.json").write_text(json.dumps(config, indent=4))


def _lerobot_statistics(name: str, normaliser: Normaliser, mode: str, scale: ActionScale) -> dict[str, Tensor]:
    """{"action.mean": ...}: the two numbers that the mode wants, in recorded units."""
    if mode == "IDENTITY":
        return {}
    if mode == "MEAN_STD":
        first, second = scale.to_recorded(normaliser.offset.cpu().numpy()), scale.unit * normaliser.scale.cpu().numpy()
    else:
        ends = (normaliser.unnormalise(torch.full_like(normaliser.scale, end)).cpu().numpy() for end in (-1.0, 1.0))
        first, second = (scale.to_recorded(end) for end in ends)
    named = zip(STATISTICS[mode], (first, second), strict=True)
    return {f"{name}.{statistic}": torch.tensor(np.asarray(value), dtype=torch.float32) for statistic, value in named}


def _write_transformers_statistics(policy: FlowPolicy, place: Path, scale: ActionScale) -> None:
    """transformers' pi0 keeps mean and standard deviation among its processor's settings."""
    path = place / "processor_config.json"
    content = read_json(path) if path.is_file() else {}
    for feature, normaliser, units in (
        ("state", policy.state_normaliser, ActionScale.identity(len(policy.state_normaliser.scale))),
        ("actions", policy.action_normaliser, scale),
    ):
        content[f"{feature}_mean"] = units.to_recorded(normaliser.offset.cpu().numpy()).tolist()
        content[f"{feature}_std"] = (units.unit * normaliser.scale.cpu().numpy()).tolist()
    write_json(path, content)


def _bring_folders(policy: FlowPolicy, place: Path) -> None:
    """Tokenizer and vision-language configuration, where they are folders of the checkpoint's rather than names on the Hub."""
    names = {policy.checkpoint.tokenizer_settings.name, str(policy.checkpoint.config.get("vlm_model_name", ""))}
    for name in names - {"", "."}:
        folder = beside(policy.checkpoint.folder, name)
        target = inside(place, own_name(name), place)
        if folder is not None and not target.exists():
            target.mkdir(parents=True)
            copy_files(folder, target, lambda path: path.suffix in PLAIN)


# OpenVLA-OFT


def _write_heads(policy: OpenVLAPart, source: Path, place: Path) -> None:
    """The heads as they are now, under the names that the checkpoint has for them."""
    for name in HEADS:
        head = getattr(policy, name, None)
        if head is not None:
            files = sorted(path.stem for path in source.glob(f"{name}--*_checkpoint.*"))
            stem = files[0] if files else f"{name}--0_checkpoint"
            inner = "model." if name == "action_head" else ""  # the policy holds what is inside of it
            write_tensors(place / f"{stem}.safetensors", {inner + key: value.contiguous() for key, value in head.state_dict().items()})


def _write_bounds(policy: OpenVLAPart, place: Path, scale: ActionScale) -> None:
    """dataset_statistics.json of what the policy maps by, unless they are the checkpoint's own and its units those of the recording."""
    if policy.config.statistics == "checkpoint" and scale.is_identity:
        return
    mapped = policy.actions.mask.cpu().numpy()
    if not ActionScale(scale.offset[~mapped], scale.unit[~mapped]).is_identity:
        raise UserError("policy.gripper libero: its gripper is a sign, but the recording has other units; set policy.gripper=as recorded")
    entry = {"action": _bounds(policy.actions, scale)}
    if policy.proprio_projector is not None:
        entry["proprio"] = _bounds(policy.body, ActionScale.identity(len(policy.body.low)))
    path = place / "dataset_statistics.json"
    published = list(read_json(path)) if path.is_file() else []
    name = policy.config.unnorm_key or (published[0] if len(published) == 1 else OWN_STATISTICS)  # by its name readers know the steps of an answer
    write_json(path, {name: entry})


def _bounds(scaler, scale: ActionScale) -> dict:
    """A column's 1 % and 99 % quantiles; extremes that are equal mark a constant one."""
    low = scale.to_recorded(scaler.low.cpu().numpy())
    high = scale.to_recorded((scaler.low + scaler.span).cpu().numpy()) - 1e-8  # which reading adds
    constant, mask = scaler.constant.cpu().numpy(), scaler.mask.cpu().numpy()
    extremes = {"min": low.tolist(), "max": np.where(constant, low, high).tolist()}
    return {"q01": low.tolist(), "q99": high.tolist(), **extremes, "mask": mask.tolist()}
