"""From a checkpoint of pi0 or SmolVLA to a policy for the recipe's environment."""

from pathlib import Path

import torch

from ..atomic import read_json
from ..confine import inside
from ..errors import UserError
from .flow import FlowPolicy
from .lerobot import LeRobotCheckpoint, read_lerobot
from .normaliser import Normaliser
from .shards import shard_paths, stored
from .vla import VLAConfig


def check_flow(folder: Path, kind: str, config: VLAConfig) -> str | None:
    """What of the checkpoint is left unused, in a line. Raises UserError where the small files tell that it does not fit."""
    if kind == "pi0" and "model_type" in (declared := read_json(inside(folder, "config.json", folder))):
        from .pi0.layouts import read_transformers

        checkpoint = read_transformers(folder, declared, stored(folder))
    else:
        checkpoint = read_lerobot(folder, kind, config.statistics == "checkpoint")
    _normalisers(folder, config, checkpoint)
    left = len(checkpoint.image_shapes) - len(config.cameras)
    if left <= 0:
        return None
    return f"{config.model}: takes the pictures {', '.join(checkpoint.image_keys)}, is shown {', '.join(config.cameras)} (policy.cameras)"


def load_flow_policy(folder: Path, kind: str, config: VLAConfig, dtype: torch.dtype, weights: bool = True) -> FlowPolicy:
    """Raises UserError where the checkpoint is not whole, is of another robot, takes fewer cameras or predicts fewer steps."""
    if kind == "pi0":
        from .pi0.checkpoint import load_pi0 as load
    else:
        from .smolvla.checkpoint import load_smolvla as load

    own = {"shifted_patches": config.shifted_patches} if kind == "smolvla" else {}
    if weights:
        shard_paths(folder)
    model, checkpoint = load(folder, dtype=dtype, weights=weights, statistics=config.statistics == "checkpoint", **own)
    normalisers = _normalisers(folder, config, checkpoint)
    model.checkpoint_gradients(config.gradient_checkpointing)
    return FlowPolicy(config, model, checkpoint, *normalisers)


def _normalisers(folder: Path, config: VLAConfig, checkpoint: LeRobotCheckpoint) -> list[Normaliser]:
    """Of state and action: the checkpoint's own, or empty ones for the demonstrations' statistics."""
    if len(config.cameras) > len(checkpoint.image_keys):
        raise UserError(
            f"{folder}: takes {len(checkpoint.image_keys)} cameras {checkpoint.image_keys}, found {list(config.cameras)} in policy.cameras"
        )
    if config.chunk > checkpoint.chunk:
        raise UserError(f"{folder}: predicts {checkpoint.chunk} steps, but env.chunk plays {config.chunk}; play {checkpoint.chunk} at most")
    normalisers = [checkpoint.state_normaliser, checkpoint.action_normaliser]
    if config.statistics == "dataset":
        sizes = (config.state_size, checkpoint.max_state), (config.action_size, checkpoint.max_action)
        for (size, most), what in zip(sizes, ("state", "action")):
            if size > most:
                raise UserError(f"{folder}: takes {most} {what} numbers at most, found {size} in the environment; choose another checkpoint")
        return [Normaliser(old.mode, size, eps=old.eps or 1e-8) for old, (size, _) in zip(normalisers, sizes)]
    if not all(normaliser.known for normaliser in normalisers):
        found = f"only those of {', '.join(checkpoint.other_statistics)}" if checkpoint.other_statistics else "none"
        raise UserError(
            f"{folder}: policy.statistics is checkpoint, but this base model holds {found} for observation.state and action: "
            "set policy.statistics=dataset, which takes those of the demonstrations"
        )
    found = {"state": checkpoint.state_size, "action": checkpoint.action_size}
    if found != {"state": config.state_size, "action": config.action_size}:
        wanted = f"{config.state_size} and {config.action_size} in the environment"
        raise UserError(
            f"{folder}: statistics of another robot, {found['state']} state and {found['action']} action numbers, expected {wanted}; "
            "to fine-tune on this one: policy.statistics=dataset"
        )
    return normalisers
