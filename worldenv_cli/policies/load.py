"""From a checkpoint's folder or name to a policy that acts."""

import torch

from ..errors import UserError
from ..hub import downloaded
from ..progress import say
from .checks import self_check
from .kinds import family
from .policy import Policy
from .shards import shard_paths
from .vla import VLAConfig, checkpoint_folder


def check_checkpoint(config: VLAConfig) -> None:
    """Whether policy.model is there and fits the recipe, from its small files only, so that a wrong name is told before anything is made.

    What is assumed is said. Of a Hub repository the small files are downloaded. Raises UserError.
    """
    folder = checkpoint_folder(config, weights=False)
    kind = family(folder)
    if kind == "openvla":
        from .openvla.load import check_openvla

        assumed = check_openvla(folder, config)
    else:
        from .flow_checkpoint import check_flow

        assumed = check_flow(folder, kind, config)
    if downloaded(folder) is None:
        shard_paths(folder)
    if assumed:
        say(assumed)


def load_vla(config: VLAConfig, device: torch.device | str = "cpu", weights: bool = True) -> Policy:
    """The checkpoint's policy, frozen but for what `trainable` adds, in evaluation mode; without `weights` parameters are shapes only.

    The self-check's result is said. Raises UserError where it fails, for a missing or truncated file, a tensor that is missing, unexpected or
    misshapen, numbers that are not finite, statistics of another robot, and where the checkpoint takes fewer cameras.
    """
    folder, dtype = checkpoint_folder(config, weights), getattr(torch, config.dtype)
    kind = family(folder)
    if kind == "openvla":
        from .openvla.load import load_openvla_policy

        policy = load_openvla_policy(folder, config, dtype, weights)
    else:
        from .flow_checkpoint import load_flow_policy

        policy = load_flow_policy(folder, kind, config, dtype, weights)
    policy.model.requires_grad_(False)
    if weights:
        policy = policy.to(device)
        try:
            self_check(policy.eval(), config.model)
        except IndexError as error:
            raise UserError(f"{config.model}: its tokenizer gives words that the model does not have; they are not of one checkpoint") from error
    return policy.eval()
