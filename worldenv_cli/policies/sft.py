"""Supervised fine-tuning: an L1 action head on demonstrations, then the Laplace scale head by likelihood on what the action head leaves over."""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..data.dataset import Episode
from ..packing import normalised, pack, shifted
from ..progress import check_finite
from ..training import TrainingConfig, train
from .compact import BLOCK, CompactPolicy


class SFTConfig(TrainingConfig):
    scale_steps: int = Field(60, ge=0, description="steps of the scale head alone, by Laplace likelihood")
    shift: int = Field(2, ge=0, description="random shift of the picture, pixels")
    state_noise: float = Field(0.05, ge=0, description="noise on proprioception, standard deviations")


class ChunkSamples:
    """Every control step of some episodes as a training sample: observation and the chunk that followed, padded steps masked."""

    def __init__(self, episodes: Sequence[Episode], camera: str, chunk: int):
        index = [(e, t) for e, episode in enumerate(episodes) for t in range(len(episode.actions))]
        self.frames = np.concatenate([episode.frames[camera][:-1] for episode in episodes])  # (N, H, W, 3)
        self.states = np.concatenate([episode.states[:-1] for episode in episodes])  # (N, S)
        self.instructions = np.array([episodes[e].instruction for e, _ in index], dtype=object)
        self.actions = np.zeros((len(index), chunk, episodes[0].actions.shape[1]), np.float32)  # (N, T, A)
        self.mask = np.zeros((len(index), chunk), bool)
        for n, (e, t) in enumerate(index):
            following = episodes[e].actions[t : t + chunk]
            self.actions[n, : len(following)] = following
            self.mask[n, : len(following)] = True

    def __len__(self) -> int:
        return len(self.frames)


def l1_loss(policy: CompactPolicy, samples: ChunkSamples, index: np.ndarray, config: SFTConfig, rng: np.random.Generator) -> Tensor:
    """Mean absolute error of the chunk, over the steps that were really played, in action units."""
    mean, _ = policy.from_tensors(*augmented(policy, samples, index, config, rng))
    mask = torch.from_numpy(samples.mask[index]).to(policy.device)[..., None]
    error = (mean - torch.from_numpy(samples.actions[index]).to(policy.device)).abs() * mask
    return error.sum() / (mask.sum() * mean.shape[-1])


def augmented(policy: CompactPolicy, samples: ChunkSamples, index: np.ndarray, config: SFTConfig, rng: np.random.Generator):
    """(image, state, text) tensors with the picture shifted and the proprioception blurred: five demonstrations are soon known by heart."""
    frames = shifted(samples.frames[index], rng.integers(-config.shift, config.shift + 1, (len(index), 2)))
    image = normalised(pack(frames, BLOCK).to(policy.device))
    state = torch.from_numpy(samples.states[index]).to(policy.device)
    noise = torch.from_numpy(rng.standard_normal(state.shape).astype(np.float32)).to(policy.device)
    state = state + config.state_noise * policy.state_std * noise
    return image, state, policy.text(list(samples.instructions[index]))


def fine_tune(policy: CompactPolicy, episodes: Sequence[Episode], config: SFTConfig, *, seed: int, checkpoint=None, metrics=None) -> None:
    """Train `policy` in place on what the episodes did. A policy that has never been trained takes its statistics of proprioception from them."""
    samples = ChunkSamples(episodes, policy.config.camera, policy.config.chunk)
    if not policy.state_mean.any():
        policy.state_mean.copy_(torch.from_numpy(samples.states.mean(0)))
        policy.state_std.copy_(torch.from_numpy(np.maximum(samples.states.std(0), 1e-3)))
    policy.to(memory_format=torch.channels_last)

    def loss(_, rng):
        return l1_loss(policy, samples, rng.integers(0, len(samples), config.batch), config, rng), {}

    train(policy, loss, config, seed=seed, description="fine-tuning", checkpoint=checkpoint, metrics=metrics)
    fit_scale(policy, samples, config, np.random.default_rng([seed, config.steps]), metrics)


def fit_scale(policy: CompactPolicy, samples: ChunkSamples, config: SFTConfig, rng: np.random.Generator, metrics=None) -> None:
    """Only the scale head, by Laplace negative log-likelihood on augmented samples (World-Env: the head is trained after the action head)."""
    optimizer = torch.optim.Adam(policy.scale_head.parameters(), lr=3e-3)
    for step in range(config.scale_steps):
        index = rng.integers(0, len(samples), config.batch)
        with torch.no_grad():
            image, state, text = augmented(policy, samples, index, config, rng)
            features = policy.backbone(image, (state - policy.state_mean) / policy.state_std, text)
            error = (policy.action_head(features) - torch.from_numpy(samples.actions[index]).to(policy.device)).abs()
        log_scale = policy.log_scale(features)
        mask = torch.from_numpy(samples.mask[index]).to(policy.device)[..., None]
        loss = ((np.log(2) + log_scale + error / log_scale.exp()) * mask).sum() / (mask.sum() * error.shape[-1])
        check_finite("scale head", step, negative_log_likelihood=loss.item())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if metrics and step % 20 == 0:
            metrics.log(config.steps + step, scale_nll=loss.item(), scale=log_scale.exp().mean().item())
