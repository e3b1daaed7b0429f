"""A policy with a LoRA adapter on its backbone and heads trained in full; with the adapter off it is the policy that it started from.

The tuned weights are used only for instructions that the acceptance test let through (`accepted`); None means for all of them.
"""

from collections.abc import Iterable
from contextlib import nullcontext

import numpy as np
import torch
from pydantic import Field
from torch import nn

from ..config import Config
from .compact import Act, CompactPolicy
from .heads import ChunkDensity, Generators
from .observation import Observation


class LoraSettings(Config):
    rank: int = Field(16, ge=1)
    alpha: int = Field(16, ge=1)


class AdaptedPolicy(nn.Module):
    def __init__(self, policy: CompactPolicy, settings: LoraSettings, accepted: Iterable[str] | None = None):
        super().__init__()
        from peft import LoraConfig, get_peft_model

        self.config, self.settings = policy.config, settings
        self.accepted = None if accepted is None else sorted(accepted)
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
        """The tuned policy's, whatever is accepted: this is what training moves."""
        return self.policy.density(obs)

    def reference_density(self, obs: Observation) -> ChunkDensity:
        """The starting policy's."""
        with self.model.disable_adapter(), torch.no_grad():
            return self.policy.density(obs)

    def log_prob(self, obs: Observation, chunk: np.ndarray, trace: dict[str, np.ndarray]) -> torch.Tensor:
        return self.policy.log_prob(obs, chunk, trace)

    @torch.no_grad()
    def act(self, obs: Observation, *, explore: bool, scale: np.ndarray | None = None, generator: Generators = None) -> Act:
        """Tuned weights for accepted instructions, the starting policy's for the others."""
        if self.accepted is None:
            return self.policy.act(obs, explore=explore, scale=scale, generator=generator)
        tuned = np.array([instruction in self.accepted for instruction in obs.instruction])
        parts = []
        for rows, use in ((np.flatnonzero(tuned), True), (np.flatnonzero(~tuned), False)):
            if len(rows):
                drawn = {
                    "explore": explore,
                    "scale": None if scale is None else np.asarray(scale)[rows],
                    "generator": [generator[row] for row in rows] if isinstance(generator, list) else generator,
                }
                with nullcontext() if use else self.model.disable_adapter():
                    act = self.policy.act(obs.rows(rows), **drawn)
                parts.append((rows, act))
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        return Act(
            np.concatenate([act.chunk for _, act in parts])[order],
            np.concatenate([act.log_prob for _, act in parts])[order],
            {name: np.concatenate([act.trace[name] for _, act in parts])[order] for name in parts[0][1].trace},
        )

    def parameter_groups(self, backbone_rate: float, head_rate: float) -> list[dict]:
        """LoRA and heads learn at rates of their own (World-Env: 1e-4 and 1e-5)."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        return [
            {"params": [p for name, p in named if "lora_" in name], "lr": backbone_rate},
            {"params": [p for name, p in named if "lora_" not in name], "lr": head_rate},
        ]
