"""Supervised fine-tuning on what episodes did: the policy's own loss on augmented samples, then a regression policy's scale head by likelihood."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import distributed
from ..data.dataset import Episode
from ..packing import shifted
from ..progress import check_finite
from ..training import train
from .config import SFTConfig
from .observation import Observation
from .policy import Policy
from .regression import RegressionPolicy


class ChunkSamples:
    """Every control step of some episodes as a training sample: observation and the chunk that followed, padded steps masked."""

    def __init__(self, episodes: Sequence[Episode], cameras: Sequence[str], chunk: int):
        index = [(e, t) for e, episode in enumerate(episodes) for t in range(len(episode.actions))]
        self.frames = {camera: np.concatenate([episode.frames[camera][:-1] for episode in episodes]) for camera in cameras}  # (N, H, W, 3)
        self.states = np.concatenate([episode.states[:-1] for episode in episodes])  # (N, S)
        self.instructions = np.array([episodes[e].instruction for e, _ in index], dtype=object)
        self.actions = np.zeros((len(index), chunk, episodes[0].actions.shape[1]), np.float32)  # (N, T, A)
        self.mask = np.zeros((len(index), chunk), bool)
        for n, (e, t) in enumerate(index):
            following = episodes[e].actions[t : t + chunk]
            self.actions[n, : len(following)] = following
            self.mask[n, : len(following)] = True

    def __len__(self) -> int:
        return len(self.states)

    def augmented(self, index: np.ndarray, config: SFTConfig, state_std: np.ndarray, rng: np.random.Generator) -> Observation:
        """Observations with the pictures shifted and the proprioception blurred: five demonstrations are soon known by heart."""
        offsets = rng.integers(-config.shift, config.shift + 1, (len(index), 2))
        images = {camera: shifted(frames[index], offsets) for camera, frames in self.frames.items()}
        noise = rng.standard_normal(self.states[index].shape).astype(np.float32)
        return Observation(images, self.states[index] + config.state_noise * state_std * noise, list(self.instructions[index]))


def sft_loss(policy: Policy, samples: ChunkSamples, index: np.ndarray, config: SFTConfig, rng: np.random.Generator) -> Tensor:
    """The policy's own loss on these samples, augmented."""
    return policy.sft_loss(*_batch(policy, samples, index, config, rng))


def _batch(policy: Policy, samples: ChunkSamples, index: np.ndarray, config: SFTConfig, rng: np.random.Generator) -> tuple[dict, Tensor, Tensor]:
    """(encoded observations, actions (B, T, A), mask (B, T)) on the policy's device."""
    obs = samples.augmented(index, config, policy.state_std.cpu().numpy(), rng)
    actions, mask = (torch.from_numpy(values[index]).to(policy.device) for values in (samples.actions, samples.mask))
    return policy.encode(obs), actions, mask


def fine_tune(policy: Policy, episodes: Sequence[Episode], config: SFTConfig, *, seed: int, checkpoint=None, metrics=None) -> None:
    """Train `policy` in place on what the episodes did. A policy that has never been trained takes its statistics from them."""
    samples = ChunkSamples(episodes, policy.config.cameras, policy.config.chunk)
    policy.adopt(samples.states, np.concatenate([episode.actions for episode in episodes]))
    policy.to(memory_format=torch.channels_last)

    def loss(_, rng):
        return sft_loss(policy, samples, rng.integers(0, len(samples), config.batch), config, rng), {}

    train(policy, loss, config, seed=seed, description="fine-tuning", checkpoint=checkpoint, metrics=metrics)
    if isinstance(policy.base(), RegressionPolicy):
        fit_scale(policy.base(), samples, config, np.random.default_rng([seed, config.steps]), metrics)


def fit_scale(policy: RegressionPolicy, samples: ChunkSamples, config: SFTConfig, rng: np.random.Generator, metrics=None) -> None:
    """Only the scale head, by Laplace negative log-likelihood on augmented samples (World-Env: the head is trained after the action head)."""
    optimizer = torch.optim.Adam([p for p in policy.scale_head.parameters() if p.requires_grad], lr=3e-3)
    for step in range(config.scale_steps):
        with torch.no_grad():
            batch = _batch(policy, samples, rng.integers(0, len(samples), config.batch), config, rng)
        loss, scale = policy.scale_loss(*batch)
        check_finite("scale head", step, negative_log_likelihood=loss.item())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average_gradients(policy.scale_head.parameters())
        optimizer.step()
        if metrics and step % 20 == 0:
            metrics.log(config.steps + step, scale_nll=loss.item(), scale=scale.item())
