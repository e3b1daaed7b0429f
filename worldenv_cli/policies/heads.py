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

Generators = torch.Generator | list[torch.Generator] | None  # one for all rows, or one for each: then a row's noise does not depend on the others


@dataclass
class ChunkDensity:
    """A batch of chunk distributions. `mean` and `scale` are (B, T, A); scale 0 makes the policy deterministic."""

    mean: Tensor
    scale: Tensor
    shared: float  # r above: 0 is the paper's fully factorised Laplace

    def sample(self, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """(chunk (B, T, A) before the environment's clipping, shared noise z (B, 1, A))."""
        shared_noise = _laplace(self.mean[:, :1], generator)
        own_noise = _laplace(self.mean, generator)
        return self.mean + self.scale * (self.shared * shared_noise + own_noise), shared_noise

    def log_prob(self, chunk: Tensor, shared_noise: Tensor) -> Tensor:
        """(B, T): log density of each step's action given the trace, summed over action dimensions."""
        centre = self.mean + self.shared * self.scale * shared_noise
        return (-torch.log(2 * self.scale) - (chunk - centre).abs() / self.scale).sum(-1)

    def kl(self, other: "ChunkDensity") -> Tensor:
        """(B, T): KL(self || other) of each step's action given the trace, in nats, exact and averaged over the shared noise.

        Given z the centres differ by d + r (b - b') z, so that with s = r |b - b'| the mean over z of a Laplace's KL is, for each dimension,
        (d + (b³ exp(-d / b) - s³ exp(-d / s)) / (b² - s²)) / b' + log(b' / b) - 1.
        """
        d, b = (self.mean - other.mean).abs(), self.scale
        s = (self.shared * (b - other.scale).abs()).clamp_min(1e-6)
        s = torch.where((s - b).abs() < 1e-3 * b, 1.001 * b, s)  # the formula has a removable hole at s = b
        apart = (b**3 * torch.exp(-d / b) - s**3 * torch.exp(-d / s)) / (b**2 - s**2)
        return ((d + apart) / other.scale + torch.log(other.scale / b) - 1).clamp_min(0).sum(-1)  # rounding may leave -1e-7


def _laplace(like: Tensor, generator: Generators) -> Tensor:
    """Standard Laplace noise as the difference of two exponentials. Drawn on the CPU, so that a seed means the same on every device."""
    if isinstance(generator, list):
        return torch.cat([_laplace(row, one) for row, one in zip(like.split(1), generator, strict=True)])
    exponential = torch.empty(2, *like.shape).exponential_(generator=generator).to(like.device)
    return exponential[0] - exponential[1]
