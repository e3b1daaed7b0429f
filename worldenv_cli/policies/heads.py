"""Densities of action chunks: what is sampled is what is scored, clamps and shared noise included.

Laplace with a learned scale (World-Env, section on the stochastic policy): log p = -log 2b - |a - mu| / b, summed over action dimensions.
Exploration that is independent at every control step averages out, so a part of the noise is shared along the chunk:

    z ~ Laplace(0, 1)                       one for each action dimension and chunk
    a_t | z ~ Laplace(mu_t + r b_t z, b_t)  for each step t

What is scored is the density of the chunk itself, z integrated out in closed form. Scored given z, the shared part would be noise in the reward
that no gradient accounts for: with four steps and r = 0.7 that is two thirds of what decides where the hand ends up.
"""

import math
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

    def sample(self, generator: Generators = None) -> Tensor:
        """(B, T, A): a chunk before the environment's clipping."""
        shared_noise = _laplace(self.mean[:, :1], generator)
        own_noise = _laplace(self.mean, generator)
        return self.mean + self.scale * (self.shared * shared_noise + own_noise)

    def log_prob(self, chunk: Tensor) -> Tensor:
        """(B, T): log density of each step's action given those before it in the chunk, summed over action dimensions.

        So a chunk that ended early is scored by the steps that were played, and the sum over all of them is the density of the whole chunk.
        """
        off = (chunk - self.mean) / self.scale  # (B, T, A)
        if self.shared == 0:
            return (-math.log(2) - off.abs() - self.scale.log()).sum(-1)
        joint = _log_joint(off, self.shared)
        return (joint.diff(dim=1, prepend=torch.zeros_like(joint[:, :1])) - self.scale.log()).sum(-1)

    def kl(self, other: "ChunkDensity") -> Tensor:
        """(B, T): KL(self || other) of each step's action given the shared noise, in nats, averaged over it: never less than the chunks' own.

        Given z the centres differ by d + r (b - b') z, so that with s = r |b - b'| the mean over z of a Laplace's KL is, for each dimension,
        (d + (b³ exp(-d / b) - s³ exp(-d / s)) / (b² - s²)) / b' + log(b' / b) - 1.
        """
        d, b = (self.mean - other.mean).abs(), self.scale
        s = (self.shared * (b - other.scale).abs()).clamp_min(1e-6)
        s = torch.where((s - b).abs() < 1e-3 * b, 1.001 * b, s)  # the formula has a removable hole at s = b
        apart = (b**3 * torch.exp(-d / b) - s**3 * torch.exp(-d / s)) / (b**2 - s**2)
        return ((d + apart) / other.scale + torch.log(other.scale / b) - 1).clamp_min(0).sum(-1)  # rounding may leave -1e-7


def _log_joint(off: Tensor, shared: float) -> Tensor:
    """(B, T, A): log of the integral over z of exp(-|z|) / 2 times the product of exp(-|off_s - shared z|) / 2 over the steps s up to t.

    The exponent is linear between the knots 0 and off_s / shared, so each piece has a closed form.
    """
    off = off.transpose(1, 2)  # (B, A, T)
    count = torch.arange(1, off.shape[-1] + 1, device=off.device)  # of the steps up to each
    knots = torch.cat([torch.zeros_like(off[..., :1]), off / shared], -1).sort(-1).values  # (B, A, K)
    distance = (off[..., :, None] - shared * knots[..., None, :]).abs()  # (B, A, s, K)
    exponent = -distance.cumsum(-2) - knots.abs()[..., None, :]  # (B, A, t, K)
    peak = exponent.detach().amax(-1, keepdim=True)
    value = (exponent - peak).exp()
    rise = exponent.diff(dim=-1)
    flat = rise.abs() < 1e-3
    steep = torch.where(flat, 1.0, rise)
    mean = torch.where(flat, value[..., :-1] * (1 + rise / 2 + rise**2 / 6), value.diff(dim=-1) / steep)  # of a piece
    tails = (value[..., 0] + value[..., -1]) / (1 + shared * count)
    whole = (mean * knots.diff(dim=-1)[..., None, :]).sum(-1) + tails  # (B, A, t)
    return (whole.log() + peak[..., 0] - math.log(2) * (1 + count)).transpose(1, 2)


def _laplace(like: Tensor, generator: Generators) -> Tensor:
    """Standard Laplace noise as the difference of two exponentials. Drawn on the CPU, so that a seed means the same on every device."""
    if isinstance(generator, list):
        return torch.cat([_laplace(row, one) for row, one in zip(like.split(1), generator, strict=True)])
    exponential = torch.empty(2, *like.shape).exponential_(generator=generator).to(like.device)
    return exponential[0] - exponential[1]
