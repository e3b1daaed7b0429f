"""From a checkpoint's folder or name to a policy that acts."""

import torch

from ..artifacts import check_tensors
from .checks import self_check
from .policy import Policy
from .vla import VLAConfig, checkpoint_folder, family


def load_vla(config: VLAConfig, device: torch.device | str = "cpu", weights: bool = True) -> Policy:
    """The checkpoint's policy, frozen but for what `trainable` adds, in evaluation mode; without `weights` parameters are shapes only.

    The self-check's result is said. Raises UserError where it fails, for a missing or truncated file, a tensor that is missing, unexpected or
    misshapen, numbers that are not finite, statistics of another robot, and where the checkpoint takes fewer cameras.
    """
    folder, dtype = checkpoint_folder(config), getattr(torch, config.dtype)
    kind = family(folder)
    if kind == "openvla":
        from .openvla.policy import load_openvla_policy

        policy = load_openvla_policy(folder, config, dtype, weights)
    else:
        from .flow import load_flow_policy

        policy = load_flow_policy(folder, kind, config, dtype, weights)
    policy.model.requires_grad_(False)
    if weights:
        policy = policy.to(device)
        check_tensors(policy.state_dict(), config.model, "download it again")
        self_check(policy.eval(), config.model)
    return policy.eval()
