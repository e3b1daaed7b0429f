"""Densities of action chunks: what is sampled is what is scored, clamps and shared noise included.

Laplace with a learned scale (World-Env, section on the stochastic policy): log p = -log 2b - |a - mu| / b, summed over action dimensions.
Exploration that is independent at every control step averages out, so a part of the noise is shared along the chunk. The shared part is drawn
first and kept in the trace; given it, the steps are independent Laplace variables, so that the joint density stays exact:

    z ~ Laplace(0, 1)                       one for each action dimension and chunk, the same whatever the parameters
    a_t | z ~ Laplace(mu_t + r b_t z, b_t)  for each step t
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ChunkDensity:
    """A batch of chunk distributions. `mean` and `scale` are (B, T, A); scale 0 makes the policy deterministic."""

    mean: Tensor
    scale: Tensor
    shared: float  # r above: 0 is the paper's fully factorised Laplace

    def sample(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(chunk (B, T, A) before the environment's clipping, shared noise z (B, 1, A))."""
        shared_noise = _laplace(self.mean[:, :1].shape, generator)
        own_noise = _laplace(self.mean.shape, generator)
        return self.mean + self.scale * (self.shared * shared_noise + own_noise), shared_noise

    def log_prob(self, chunk: Tensor, shared_noise: Tensor) -> Tensor:
        """(B, T): log density of each step's action given the trace, summed over action dimensions."""
        centre = self.mean + self.shared * self.scale * shared_noise
        return (-torch.log(2 * self.scale) - (chunk - centre).abs() / self.scale).sum(-1)

    def kl(self, other: "ChunkDensity") -> Tensor:
        """(B, T): KL(self || other) of the steps' own Laplace noise around the means, exact; the shared noise is common to both."""
        distance = (self.mean - other.mean).abs()
        ratio = self.scale / other.scale
        return (distance / other.scale + ratio * torch.exp(-distance / self.scale) - torch.log(ratio) - 1).sum(-1)


def _laplace(shape, generator: torch.Generator | None) -> Tensor:
    """Standard Laplace noise as the difference of two exponentials."""
    exponential = torch.empty(2, *shape).exponential_(generator=generator)
    return exponential[0] - exponential[1]
