"""A policy with a LoRA adapter and heads trained in full; with the adapter off it is the policy that it started from."""

import numpy as np
import torch
from torch import Tensor

from .config import LoraSettings
from .densities import Generators
from .observation import Observation
from .policy import Act, Density, Policy


def learned_tensors(policy: Policy) -> dict[str, Tensor]:
    """What a VLA holds beside its checkpoint, which lies in `model`: adapters, heads and statistics."""
    prefix = "model.base_model.model.model." if isinstance(policy, AdaptedPolicy) else "model."
    return {name: tensor for name, tensor in policy.state_dict().items() if not name.startswith(prefix) or "lora_" in name}


class AdaptedPolicy(Policy):
    def __init__(self, policy: Policy, settings: LoraSettings):
        super().__init__()
        from peft import LoraConfig, get_peft_model

        self.config, self.settings = policy.config, settings
        targets = settings.targets or policy.lora_targets()
        adapter = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, modules_to_save=list(policy.heads) or None)
        self.model = get_peft_model(policy, adapter)

    @property
    def reusable(self) -> bool:
        return self.policy.reusable

    @property
    def policy(self) -> Policy:
        return self.model.base_model.model

    def base(self) -> Policy:
        return self.policy

    @property
    def device(self) -> torch.device:
        return self.policy.device

    @property
    def state_std(self) -> Tensor:
        return self.policy.state_std

    def encode(self, obs: Observation) -> dict[str, Tensor]:
        return self.policy.encode(obs)

    def trace(self, encoded: dict[str, Tensor], generator: Generators = None) -> dict[str, Tensor]:
        return self.policy.trace(encoded, generator)

    def density(self, encoded: dict[str, Tensor], trace: dict[str, Tensor]) -> Density:
        """The tuned policy's: this is what training moves."""
        return self.policy.density(encoded, trace)

    @torch.no_grad()
    def reference_density(self, encoded: dict[str, Tensor], trace: dict[str, Tensor]) -> Density:
        """The starting policy's. `encoded` is right for it where the policy is `reusable`, or where the adapter was off when it was made."""
        with self.model.disable_adapter():
            return self.policy.density(encoded, trace)

    def reference_encode(self, obs: Observation) -> dict[str, Tensor]:
        """What `reference_density` wants."""
        with self.model.disable_adapter(), torch.no_grad():
            return self.policy.encode(obs)

    def act(self, obs: Observation, *, explore: bool, scale: np.ndarray | None = None, generator: Generators = None) -> Act:
        return self.policy.act(obs, explore=explore, scale=scale, generator=generator)

    def sft_loss(self, encoded: dict[str, Tensor], actions: Tensor, mask: Tensor) -> Tensor:
        return self.policy.sft_loss(encoded, actions, mask)

    def adopt(self, states: np.ndarray, actions: np.ndarray) -> None:
        self.policy.adopt(states, actions)

    def look(self, frames: np.ndarray) -> list[Tensor]:
        return self.policy.look(frames)

    def merged(self) -> Policy:
        """The tuned policy without an adapter: its changes are part of the weights. This object is used up: there is no second copy of them."""
        adapter = {name: tensor.detach().clone() for name, tensor in self.adapter_tensors().items()}
        self.policy.config = self.config.model_dump()  # peft asks it for tied weights, as a dict
        policy = self.model.merge_and_unload()
        policy.config = self.config
        policy.merged_adapters = [*policy.merged_adapters, (self.settings, adapter)]
        return policy

    def adapter_tensors(self) -> dict[str, Tensor]:
        """LoRA's own, without the heads."""
        return {name: tensor for name, tensor in self.state_dict().items() if "lora_" in name}

    def trainable(self) -> Policy:
        return self.merged().trainable()

    def plain(self) -> Policy:
        return self.merged()

    def parameter_groups(self, backbone_rate: float, head_rate: float) -> list[dict]:
        """LoRA and heads learn at rates of their own (World-Env: 1e-4 and 1e-5)."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in named if "lora_" in name], "lr": backbone_rate},
            {"params": [p for name, p in named if "lora_" not in name], "lr": head_rate},
        ]
        return [group for group in groups if group["params"]]
