"""A policy with a LoRA adapter on its backbone and heads trained in full; with the adapter off it is the policy that it started from."""

import copy

import numpy as np
import torch
from pydantic import Field
from torch import nn

from ..config import Config
from ..pretrained import Pretrained
from .compact import Act, CompactPolicy
from .heads import ChunkDensity, Generators
from .observation import Observation


class LoraSettings(Config):
    rank: int = Field(16, ge=1)
    alpha: int = Field(16, ge=1)


class AdaptedPolicy(Pretrained, nn.Module):
    kind = "policy"

    def __init__(self, policy: CompactPolicy, settings: LoraSettings):
        super().__init__()
        from peft import LoraConfig, get_peft_model

        self.config, self.settings = policy.config, settings
        targets = [f"backbone.{name}" for name, module in policy.backbone.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        self.model = get_peft_model(
            policy,
            LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, modules_to_save=["action_head", "scale_head"]),
        )

    @property
    def policy(self) -> CompactPolicy:
        return self.model.base_model.model

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def density(self, obs: Observation) -> ChunkDensity:
        """The tuned policy's: this is what training moves."""
        return self.policy.density(obs)

    def reference_density(self, obs: Observation) -> ChunkDensity:
        """The starting policy's."""
        with self.model.disable_adapter(), torch.no_grad():
            return self.policy.density(obs)

    def log_prob(self, obs: Observation, chunk: np.ndarray) -> torch.Tensor:
        return self.policy.log_prob(obs, chunk)

    def act(self, obs: Observation, *, explore: bool, scale: np.ndarray | None = None, generator: Generators = None) -> Act:
        return self.policy.act(obs, explore=explore, scale=scale, generator=generator)

    def merged(self) -> CompactPolicy:
        """The tuned policy without an adapter: its changes are part of the weights."""
        model = copy.deepcopy(self.model)
        model.base_model.model.config = self.config.model_dump()  # peft asks it for tied weights, as a dict
        policy = model.merge_and_unload()
        policy.config = self.config
        return policy

    def parameter_groups(self, backbone_rate: float, head_rate: float) -> list[dict]:
        """LoRA and heads learn at rates of their own (World-Env: 1e-4 and 1e-5)."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        return [
            {"params": [p for name, p in named if "lora_" in name], "lr": backbone_rate},
            {"params": [p for name, p in named if "lora_" not in name], "lr": head_rate},
        ]
