"""A VLA's checkpoint again, in its own layout, with all adapters in its weights: what other projects open, and what needs no base model.

Only weights that adapters changed are replaced; every other tensor and file is the published one's. Statistics of lerobot's checkpoints are
written where the policy has its own. Heads and scale heads stay in the artifact around it: OpenVLA's own layout keeps them as pickles.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import read_json, write_json, write_tensors
from ..confine import copy_files, inside
from ..errors import UserError
from .flow import FlowPolicy
from .kinds import family
from .lerobot_steps import ACTION, POSTPROCESSOR, PREPROCESSOR, STATE
from .normaliser import STATISTICS, Normaliser
from .parts import beside
from .policy import Policy
from .vla import checkpoint_folder

PLAIN = (".json", ".txt", ".model", ".jinja")


def write_checkpoint(policy: Policy, place: Path) -> None:
    """`policy` without an adapter of its own (see Policy.plain). Raises UserError where an adapter changed what files hold in another form."""
    source = checkpoint_folder(policy.config)
    place.mkdir(parents=True)
    copy_files(source, place, lambda path: path.suffix in (*PLAIN, ".pt", ".safetensors") and not _weights(path))
    changed = _changed(policy, source)
    files = [path for path in sorted(source.iterdir()) if _weights(path)]
    left = set(changed)
    for path in files:
        left -= _with_changes(path, place / path.name, changed)
    if left:
        raise UserError(f"{source}: adapters changed {sorted(left)[0]}, which its files hold in another form; push the adapters alone")
    if isinstance(policy, FlowPolicy):
        _write_statistics(policy, place)
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
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    mine = tensors.keys() & changed.keys()
    for name in mine:
        tensors[name] = changed[name].detach().to("cpu", tensors[name].dtype).reshape(tensors[name].shape).contiguous()
    save_file(tensors, place, metadata)
    return mine


def _write_statistics(policy: FlowPolicy, place: Path) -> None:
    """What the policy normalises by, into both pipelines and into the sizes that config.json tells of them."""
    if not (place / PREPROCESSOR).is_file():
        return
    sizes = {STATE: [len(policy.state_normaliser.scale)], ACTION: [len(policy.action_normaliser.scale)]}
    statistics = _statistics(STATE, policy.state_normaliser) | _statistics(ACTION, policy.action_normaliser)
    for pipeline in (PREPROCESSOR, POSTPROCESSOR):
        found = read_json(place / pipeline)
        for step in found["steps"]:
            for name, feature in step["config"].get("features", {}).items():
                feature["shape"] = sizes.get(name, feature["shape"])
            if "state_file" in step:
                write_tensors(inside(place, step["state_file"], place / pipeline), statistics)
        write_json(place / pipeline, found)
    config = read_json(place / "config.json")
    for name, feature in (config["input_features"] | config["output_features"]).items():
        feature["shape"] = sizes.get(name, feature["shape"])
    (place / "config.json").write_text(json.dumps(config, indent=4))


def _statistics(name: str, normaliser: Normaliser) -> dict[str, Tensor]:
    """{"observation.state.mean": ...}: the two numbers that the normaliser's mode wants."""
    if normaliser.mode == "IDENTITY":
        return {}
    first = normaliser.offset
    second = normaliser.scale if normaliser.mode == "MEAN_STD" else first + 2 * normaliser.scale
    return {
        f"{name}.{statistic}": value.detach().to("cpu", torch.float32).clone()
        for statistic, value in zip(STATISTICS[normaliser.mode], (first, second))
    }


def _bring_folders(policy: FlowPolicy, place: Path) -> None:
    """Tokenizer and vision-language configuration, where they are folders of the checkpoint's rather than names on the Hub."""
    names = {policy.checkpoint.tokenizer_settings.name, str(policy.checkpoint.config.get("vlm_model_name", ""))}
    for name in names:
        folder = beside(policy.checkpoint.folder, name) if name else None
        if folder is not None and not inside(place, name, place).exists():
            (place / name).mkdir(parents=True)
            copy_files(folder, place / name, lambda path: path.suffix in PLAIN)
