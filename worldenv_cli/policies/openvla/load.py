"""From an OpenVLA-OFT checkpoint to a policy for the recipe's environment: what its files say, what its name says, and what is assumed."""

from pathlib import Path

import torch

from ...atomic import read_json
from ...confine import inside
from ...errors import UserError
from ..policy import Policy
from ..vla import VLAConfig
from .checkpoint import HEAD_BLOCKS, load_openvla, read_declared, read_statistics
from .inputs import Statistics, known_key
from .model import HeadConfig, L1ActionHead, ProprioProjector
from .pictures import check_pictures
from .policy import OpenVLAPolicy, OpenVLATokenPolicy

LIBERO_STEPS, ALOHA_STEPS, BRIDGE_STEPS, ALOHA_WIDTH = 8, 25, 5, 14  # of an answer; of an action with two arms


def check_openvla(folder: Path, config: VLAConfig) -> str | None:
    """What no file tells and is assumed, in a line. Raises UserError where the small files tell that the checkpoint does not fit."""
    declared = read_declared(folder)
    if config.new_head:
        if config.statistics != "dataset" or config.actions != "l1":
            raise UserError(
                f"{folder}: new_head needs policy.statistics=dataset and policy.actions=l1: what the base model knows of actions is left out"
            )
        return None
    assumed = check_pictures(config, folder)
    known = _known_statistics(folder)
    if config.statistics == "checkpoint":
        read_statistics(folder, declared, config.unnorm_key, _said_by_statistics(known, config.unnorm_key)[1])
    steps = config.predicts or _said_by_statistics(known, config.unnorm_key)[0]
    if config.chunk > steps:
        raise UserError(f"{folder}: predicts {steps} steps, but env.chunk plays {config.chunk}; play {steps} at most")
    return assumed


def load_openvla_policy(folder: Path, config: VLAConfig, dtype: torch.dtype, weights: bool = True) -> Policy:
    """Raises UserError where the checkpoint is not whole or is of another robot."""
    check_openvla(folder, config)
    if config.new_head:
        return _on_the_base_model(folder, config, dtype, weights)
    known = _known_statistics(folder)
    steps, bounds = _said_by_statistics(known, config.unnorm_key)
    own = config.statistics == "checkpoint"
    chosen = {"head": config.actions, "bounds": bounds, "adapter": config.adapter, "weights": weights}
    chosen |= {"unnorm_key": config.unnorm_key if own else known_key(known, config.unnorm_key) or next(iter(known), None)}
    if not own and not known:
        chosen["statistics"] = Statistics.unknown(config.action_size, config.state_size)
    checkpoint = load_openvla(folder, dtype=dtype, images=len(config.cameras), chunk=config.predicts or steps, **chosen)
    model = checkpoint.model.config
    found, wanted = {"action": model.action_size}, {"action": config.action_size}
    if model.proprio_size is not None:
        found["proprioception"], wanted["proprioception"] = model.proprio_size, config.state_size
    if found != wanted:
        raise UserError(
            f"{folder}: made for another robot, {found} numbers, but {wanted} in the environment; choose another checkpoint or environment"
        )
    checkpoint.model.set_gradient_checkpointing(config.gradient_checkpointing)
    return (OpenVLAPolicy if config.actions == "l1" else OpenVLATokenPolicy)(config, checkpoint)


def _on_the_base_model(folder: Path, config: VLAConfig, dtype: torch.dtype, weights: bool) -> Policy:
    """A policy for this environment on a model that was trained on other robots: only its language and vision are taken over."""
    anybody = Statistics.unknown(config.action_size, config.state_size)  # the base model's are of other robots
    checkpoint = load_openvla(folder, dtype=dtype, images=len(config.cameras), chunk=config.chunk, head="tokens", weights=weights, statistics=anybody)
    model = checkpoint.model
    width, sizes = model.config.language.width, {"action_size": config.action_size}
    if config.proprioception:
        sizes["proprio_size"] = config.state_size
        model.proprio_projector = ProprioProjector(config.state_size, width)
    sizes["head"] = HeadConfig(width=width, blocks=HEAD_BLOCKS)
    model.action_head = L1ActionHead(width, config.action_size, sizes["head"])
    model.config = model.config.model_copy(update=sizes)
    model.set_gradient_checkpointing(config.gradient_checkpointing)
    return OpenVLAPolicy(config, checkpoint)


def _known_statistics(folder: Path) -> dict:
    """{name of a dataset: its statistics}; config.json's are the base model's."""
    path = inside(folder, "dataset_statistics.json", folder)
    known = read_json(path) if path.is_file() else read_json(folder / "config.json").get("norm_stats")
    return known if isinstance(known, dict) else {}


def _said_by_statistics(known: dict, key: str | None) -> tuple[int, str]:
    """(steps of an answer, which bounds): nothing but the name and width of the statistics tells for which robot a checkpoint was trained."""
    name = known_key(known, key) or next(iter(known), "")
    entry = known.get(name)
    bounds = entry.get("action") if isinstance(entry, dict) else None
    quantiles = bounds.get("q01") if isinstance(bounds, dict) else None
    width = len(quantiles) if isinstance(quantiles, list) else 0
    if width == ALOHA_WIDTH or "aloha" in name:
        return ALOHA_STEPS, "extremes"
    return BRIDGE_STEPS if "bridge" in name else LIBERO_STEPS, "quantiles"
