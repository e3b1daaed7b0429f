"""Policies that regress a chunk: an L1 action head, and a scale head beside it that makes a Laplace of it (World-Env, stochastic policy)."""

import numpy as np
import torch
from torch import Tensor

from .densities import Generators, LaplaceDensity
from .observation import Observation
from .policy import Act, Policy


class RegressionPolicy(Policy):
    """Adds to its backbone: `action_head` and `scale_head`, each from features (B, T, F) to (B, T, A). `config` has the scale's bounds."""

    density_is = "a Laplace density"
    heads = ("action_head", "scale_head")

    def features(self, encoded: dict[str, Tensor]) -> Tensor:
        """(B, T, F), one for each step of the chunk."""
        raise NotImplementedError

    def to_environment(self, actions: Tensor) -> Tensor:
        """From the space in which the heads work to the environment's units; `from_environment` is its inverse."""
        return actions

    def from_environment(self, actions: Tensor) -> Tensor:
        return actions

    def log_scale(self, features: Tensor) -> Tensor:
        """features (B, T, F) -> (B, T, A), between the bounds by a smooth clamp, which keeps a gradient there."""
        low, high = np.log(self.config.scale_min), np.log(self.config.scale_max)
        return low + (high - low) * torch.sigmoid(self.scale_head(features))

    def density(self, encoded: dict[str, Tensor], trace: dict[str, Tensor]) -> LaplaceDensity:
        """With "scale" (B,) in the trace, that replaces the scale head's word."""
        features = self.features(encoded)
        mean, log_scale = self.action_head(features), self.log_scale(features)
        scale = trace["scale"][:, None, None].expand_as(mean) if "scale" in trace else log_scale.exp()
        return LaplaceDensity(mean, scale, self.config.shared_noise)

    @torch.no_grad()
    def act(self, obs: Observation, *, explore: bool, scale: np.ndarray | None = None, generator: Generators = None) -> Act:
        encoded = self.encode(obs)
        trace = {} if scale is None else {"scale": torch.as_tensor(scale, dtype=torch.float32, device=self.device)}
        density = self.density(encoded, trace)
        sampled = density.sample(generator) if explore else density.mean
        log_prob = density.log_prob(sampled) if explore else torch.zeros(sampled.shape[:2])
        return Act(self.to_environment(sampled).cpu().numpy(), log_prob.cpu().numpy(), trace | {"sampled": sampled}, encoded)

    def sft_loss(self, encoded: dict[str, Tensor], actions: Tensor, mask: Tensor) -> Tensor:
        """Mean absolute error over the steps that were really played."""
        mean = self.action_head(self.features(encoded))
        error = (mean - self.from_environment(actions)).abs() * mask[..., None]
        return error.sum() / (mask.sum() * mean.shape[-1])

    def scale_loss(self, encoded: dict[str, Tensor], actions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(Laplace negative log-likelihood, mean scale): only the scale head learns from it, from what the action head leaves over."""
        with torch.no_grad():
            features = self.features(encoded)
            error = (self.action_head(features) - self.from_environment(actions)).abs()
        log_scale = self.log_scale(features)
        loss = ((np.log(2) + log_scale + error / log_scale.exp()) * mask[..., None]).sum() / (mask.sum() * error.shape[-1])
        return loss, log_scale.exp().mean()
