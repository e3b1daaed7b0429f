"""What every policy can do, whatever its family: act, score again what it did, learn from demonstrations.

An observation is first *encoded*: everything that need not be computed twice for it, because no trained weight touches it (`reusable`) or because
several passes share it, such as the prompt's keys and values of a flow policy. All encoded tensors have the rows first.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..pretrained import Pretrained
from .densities import FlowDensity, Generators, LaplaceDensity, TokenDensity
from .observation import Observation

Density = LaplaceDensity | TokenDensity | FlowDensity


@dataclass
class Act:
    """What `act` did: the chunk before clipping, its log density for each step, and what is needed to score it again."""

    chunk: np.ndarray  # (B, T, A) float32, in the environment's units
    log_prob: np.ndarray  # (B, T) float32
    trace: dict[str, Tensor] = field(default_factory=dict)  # rows first; "sampled" is what the density is of
    encoded: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Stack:
    """Transformer layers through which a row's tokens pass."""

    layers: int
    tokens: int
    width: int
    mlp: int
    size: int  # bytes of a number
    learns: bool  # whether gradients pass through it

    def kept(self, checkpointed: bool) -> int:
        """Bytes a row."""
        whole = self.tokens * (12 * self.width + 4 * self.mlp) * self.size
        if not self.learns:
            return 0
        return self.layers * self.tokens * self.width * self.size + whole if checkpointed else self.layers * whole


class Policy(Pretrained, nn.Module):
    """`config` has `chunk`, the steps T that are played and scored, `state_size` and `action_size`; `state_std` (S,) is a buffer: the spread of
    proprioception in its units, as the policy's normalisation has it.
    """

    kind = "policy"
    density_is: ClassVar[str]
    heads: tuple[str, ...] = ()  # modules that learn in full beside a LoRA adapter
    merged_adapters: list = []  # [(LoraSettings, tensors)] that became part of the weights, the first one first

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def reusable(self) -> bool:
        """Whether encoded observations stay right while the policy learns: nothing that learns has touched them, and they are worth keeping."""
        return False

    def encode(self, obs: Observation) -> dict[str, Tensor]:
        raise NotImplementedError

    def trace(self, encoded: dict[str, Tensor], generator: Generators = None) -> dict[str, Tensor]:
        """What a density at these observations is given, beside them; nothing for most policies."""
        return {}

    def density(self, encoded: dict[str, Tensor], trace: dict[str, Tensor]) -> Density:
        raise NotImplementedError

    def act(self, obs: Observation, *, explore: bool, scale: np.ndarray | None = None, generator: Generators = None) -> Act:
        """A chunk for each row: the policy's best, or with `explore` a sample. `scale` (B,) replaces its own amount of noise, where given:
        Laplace scale, temperature or noise level.
        """
        raise NotImplementedError

    def log_prob(self, obs: Observation, trace: dict[str, Tensor]) -> Tensor:
        """(B, T) differentiable log density of what `act` sampled."""
        return self.density(self.encode(obs), trace).log_prob(trace["sampled"])

    def sft_loss(self, encoded: dict[str, Tensor], actions: Tensor, mask: Tensor) -> Tensor:
        """actions (B, T, A) in the environment's units, mask (B, T) bool: the steps that were really played."""
        raise NotImplementedError

    def look(self, frames: np.ndarray) -> list[Tensor]:
        """frames (B, H, W, 3) uint8 -> features (B, C, ...) of the picture at one or more depths, for a perceptual distance."""
        raise NotImplementedError

    def dependences(self) -> dict[str, float]:
        """{what must matter in this family: how far the answer moves with it}, for the check of a loaded checkpoint."""
        return {}

    def lora_targets(self) -> list[str]:
        """Names of the linear and convolutional modules that an adapter changes."""
        raise NotImplementedError

    def adopt(self, states: np.ndarray, actions: np.ndarray) -> None:
        """Take statistics from (N, S) states and (N, A) actions, where the policy has none of its own yet."""

    def stacks(self) -> list[Stack]:
        """The transformer layers of a pass, for an estimate of memory; none where a policy is too small to matter."""
        return []

    def encoded_size(self) -> int:
        """Bytes of one encoded observation."""
        return 0

    def base(self) -> "Policy":
        """Itself: an adapted policy answers with the one that it adapts."""
        return self

    def plain(self) -> "Policy":
        """Itself; an adapted policy answers with its adapter merged into the weights, and is used up."""
        return self

    def trainable(self) -> "Policy":
        """What fine-tuning moves: all weights here, an adapter and heads of a VLA."""
        return self


def rows_of(tensors: dict[str, Tensor], rows) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in tensors.items()}


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
