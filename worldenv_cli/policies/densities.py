"""Densities of action chunks: what is sampled is what is scored, clamps and shared noise included.

Every density has `sample(generator)` or is sampled step by step (flow), `log_prob(sampled)` -> (B, T) for each step of the chunk, and
`kl(other)` -> (B, T) in nats.

**Regression policies.** Laplace with a learned scale (World-Env, stochastic policy): log p = -log 2b - |a - mu| / b, summed over action dimensions.
Exploration that is independent at every control step averages out, so a part of the noise is shared along the chunk:

    z ~ Laplace(0, 1)                       one for each action dimension and chunk
    a_t | z ~ Laplace(mu_t + r b_t z, b_t)  for each step t

What is scored is the density of the chunk itself, z integrated out in closed form. Scored given z, the shared part would be noise in the reward
that no gradient accounts for: with four steps and r = 0.7 that is two thirds of what decides where the hand ends up.

**Token policies.** Each action dimension is one of 256 bins: a softmax over their logits.

**Flow policies** walk from noise (time 1) to actions (time 0) in N steps of dt. Without noise on the way a walk has no density. Two ways to add it:
*one-step SDE* (Flow-GRPO's step, at one random step of each walk as in pi-RL): with v the velocity, x1 = x + (1 - t) v the noise it comes from and
sigma = level sqrt(t / (1 - t)), the next point is Normal(x - dt v - sigma² dt / (2 t) x1, sigma sqrt(dt)), which keeps the marginals of the flow;
*learned noise* (ReinFlow): every step is Normal(x - dt v, std) with a bounded std from a small head, and the first noise counts too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None  # one for all rows, or one for each: then a row's noise does not depend on the others


@dataclass
class LaplaceDensity:
    """A batch of chunk distributions. `mean` and `scale` are (B, T, A); scale 0 makes the policy deterministic."""

    mean: Tensor
    scale: Tensor
    shared: float  # r above: 0 is the paper's fully factorised Laplace

    def sample(self, generator: Generators = None) -> Tensor:
        """(B, T, A): a chunk before the environment's clipping."""
        shared_noise = noise(_laplace, self.mean[:, :1], generator)
        own_noise = noise(_laplace, self.mean, generator)
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

    def spread(self) -> float:
        """Mean scale, for the record."""
        return self.scale.mean().item()

    def kl(self, other: "LaplaceDensity") -> Tensor:
        """(B, T): KL(self || other) of each step's action given the shared noise, in nats, averaged over it: never less than the chunks' own.

        Given z the centres differ by d + r (b - b') z, so that with s = r |b - b'| the mean over z of a Laplace's KL is, for each dimension,
        (d + (b³ exp(-d / b) - s³ exp(-d / s)) / (b² - s²)) / b' + log(b' / b) - 1.
        """
        d, b = (self.mean - other.mean).abs(), self.scale
        s = (self.shared * (b - other.scale).abs()).clamp_min(1e-6)
        s = torch.where((s - b).abs() < 1e-3 * b, 1.001 * b, s)  # the formula has a removable hole at s = b
        apart = (b**3 * torch.exp(-d / b) - s**3 * torch.exp(-d / s)) / (b**2 - s**2)
        return ((d + apart) / other.scale + torch.log(other.scale / b) - 1).clamp_min(0).sum(-1)  # rounding may leave -1e-7


@dataclass
class TokenDensity:
    """logits (B, T, A, 256) of the bins, divided by the temperature already."""

    logits: Tensor

    def sample(self, generator: Generators = None) -> Tensor:
        """(B, T, A) int64 numbers of bins, by inverting the cumulated probabilities."""
        cumulated = self.logits.float().softmax(-1).cumsum(-1)
        drawn = noise(torch.rand, self.logits[..., 0], generator)[..., None] * cumulated[..., -1:]
        return (cumulated <= drawn).sum(-1).clamp_max(self.logits.shape[-1] - 1)

    def log_prob(self, sampled: Tensor) -> Tensor:
        """(B, T), summed over action dimensions."""
        return self.logits.float().log_softmax(-1).gather(-1, sampled[..., None])[..., 0].sum(-1)

    def spread(self) -> float:
        """Mean entropy of a token in nats, for the record."""
        mine = self.logits.float().log_softmax(-1)
        return -(mine.exp() * mine).sum(-1).mean().item()

    def kl(self, other: "TokenDensity") -> Tensor:
        mine, theirs = self.logits.float().log_softmax(-1), other.logits.float().log_softmax(-1)
        return (mine.exp() * (mine - theirs)).sum((-1, -2))


@dataclass
class FlowDensity:
    """Normal steps of a walk from noise to actions, each given where the walk stood: mean and std (B, K, T, A) of its K stochastic steps."""

    mean: Tensor
    std: Tensor

    def log_prob(self, sampled: Tensor) -> Tensor:
        """sampled (B, K, T, A): the points that the walk reached. (B, T), summed over steps of the walk and action dimensions."""
        off = (sampled - self.mean) / self.std
        return (-0.5 * off**2 - self.std.log() - 0.5 * math.log(2 * math.pi)).sum((1, 3))

    def spread(self) -> float:
        """Mean standard deviation of a step, for the record."""
        return self.std.mean().item()

    def kl(self, other: "FlowDensity") -> Tensor:
        """Between walks that stand where this one stood."""
        ratio, apart = self.std / other.std, (self.mean - other.mean) / other.std
        return (0.5 * (ratio**2 + apart**2 - 1) - ratio.log()).sum((1, 3))


def sde_step(x: Tensor, velocity: Tensor, time: Tensor, dt: float, level: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, std) of the next point. x and velocity (B, T, A); time and level (B,). At time 1 sigma is that of dt before it, where it is finite."""
    time, level = time[:, None, None], level[:, None, None]
    sigma = level * torch.sqrt(time / (1 - time).clamp_min(dt))
    source = x + (1 - time) * velocity
    return x - dt * velocity - sigma**2 * dt / (2 * time) * source, (sigma * math.sqrt(dt)).expand_as(x)


def noise(draw: Callable, like: Tensor, generator: Generators) -> Tensor:
    """`draw(*shape, generator=...)` float32 numbers of `like`'s shape. Drawn on the CPU, so that a seed means the same on every device."""
    if isinstance(generator, list):
        return torch.cat([noise(draw, row, one) for row, one in zip(like.split(1), generator, strict=True)])
    return draw(*like.shape, generator=generator).to(like.device)


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


def _laplace(*shape: int, generator: torch.Generator | None) -> Tensor:
    """Standard Laplace noise as the difference of two exponentials."""
    exponential = torch.empty(2, *shape).exponential_(generator=generator)
    return exponential[0] - exponential[1]
