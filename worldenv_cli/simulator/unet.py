"""The picture half of the simulator: a U-Net of diffusers that makes the frames of one action chunk from context frames and action maps.

Pictures are held *packed*: blocks of pixels folded into channels, (H / block, W / block, 3 * block**2). The network works at that resolution, and
pixels are moved about as little as possible: on a CPU that soon costs more than the convolutions.

It does not paint what it can copy: for every pixel of every frame a softmax mixes the last frame, the episode's first frame (what the arm
uncovers again), two real frames of nearly the same pose (the arm itself: see `bank`) and newly made colour.

The same network serves two objectives. `flow`: it sees noisy target frames at level sigma and predicts the clean ones; a few Euler steps of
diffusers' flow-matching scheduler make a sample. `regression`: there is no target input, sigma is 1, and one pass is the prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..packing import normalised
from .bank import ALIKE
from .conditioning import MAP_CHANNELS
from .config import UNetConfig

SOURCES = 3 + ALIKE  # of every pixel: the last frame, the first one, those alike in pose, and what is newly made


@dataclass
class Conditions:
    """What the frames of a chunk are made from, as the network reads it: pictures packed, in [-1, 1], side by side at every position.

    They are, one after the other: M context frames, the last one first; the episode's first frame; for each frame to be made ALIKE real ones with
    nearly the same pose (see bank.py); T + 1 maps of 3 channels, where the hand is before the chunk and after each of its actions.
    """

    pictures: Tensor  # (B, h, w, (M + 1 + T * ALIKE) * P + (T + 1) * 3)
    states: Tensor  # (B, T + 1, S), normalised: the hand as numbers, for what a marker cannot say (how the arm bends)

    def rows(self, index) -> "Conditions":
        return Conditions(self.pictures[index], self.states[index])


def side_by_side(context: Sequence[Tensor], first: Tensor, alike: Tensor, maps: Tensor) -> Tensor:
    """`Conditions.pictures` of M context frames (B, h, w, P), first (B, h, w, P) and alike (B, T, ALIKE, h, w, P), all packed uint8, and of maps
    (B, T + 1, h, w, 3)."""
    small = torch.cat([*context, first, *alike.flatten(1, 2).unbind(1)], -1)  # as bytes: a quarter of the memory to move
    channels = small.shape[-1]
    pictures = torch.empty((*small.shape[:-1], channels + maps.shape[1] * MAP_CHANNELS), device=small.device)
    normalised(small, out=pictures[..., :channels])
    pictures[..., channels:] = torch.cat(maps.unbind(1), -1)
    return pictures


class VideoUNet(nn.Module):
    def __init__(self, config: UNetConfig, chunk: int, state_size: int):
        super().__init__()
        from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

        self.config, self.chunk = config, chunk
        self.picture = 3 * config.block**2  # channels of one packed picture
        width, depth = config.channels[0], len(config.channels)
        # channels of Conditions.pictures: context, first frame, frames alike, maps
        self.parts = [self.picture * n for n in (len(config.memory), 1, ALIKE * chunk)] + [MAP_CHANNELS * (chunk + 1)]
        self.read = nn.Conv2d(sum(self.parts), width, 1)
        self.read_noisy = nn.Conv2d(self.picture * chunk, width, 1)
        self.write = FrameWriter(width, state_size, self.picture, (SOURCES + 3) * config.block**2)
        self.network = UNet2DModel(
            in_channels=width,
            out_channels=width,
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            down_block_types=("DownBlock2D",) * depth,
            up_block_types=("UpBlock2D",) * depth,
            add_attention=False,
            norm_num_groups=8,
            class_embed_type="identity",
        )
        self.pose = nn.Sequential(nn.Linear(state_size * (chunk + 1), 256), nn.SiLU(), nn.Linear(256, 4 * width))
        # (block², P): the three colours of a pixel share one mixture, and a matrix product spreads it faster than broadcasting does
        self.register_buffer("colours", torch.eye(config.block**2).repeat(1, 3), persistent=False)
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    def clean(self, noisy: Tensor | None, sigma: Tensor, given: Conditions) -> Tensor:
        """The network's word for the clean frames, (B, T, h, w, P) packed.

        noisy (B, T, h, w, P) or None, sigma (B,). Pictures are in [-1, 1].
        """
        context, first, alike, maps = given.pictures.split(self.parts, -1)
        alike = alike.unflatten(-1, (self.chunk, -1)).movedim(-2, 1)  # (B, T, h, w, ALIKE * P)
        maps = maps.unflatten(-1, (-1, MAP_CHANNELS)).movedim(-2, 1)[:, 1:]  # (B, T, h, w, 3)
        x = self.read(given.pictures.movedim(-1, 1))
        if noisy is not None:
            x = x + self.read_noisy(torch.cat(noisy.unbind(1), -1).movedim(-1, 1))
        features = self.network(x, sigma * 1000, class_labels=self.pose(given.states.flatten(1))).sample
        out = self.write(features, torch.cat([alike, maps], -1), given.states[:, 1:]).unflatten(-1, (SOURCES + 3, -1))
        gates, colour = out.split([SOURCES, 3], -2)  # (B, T, h, w, SOURCES | 3, block²)
        shares = (gates.softmax(-2) @ self.colours).unbind(-2)  # (B, T, h, w, P) for each source
        mixed = shares[-1] * colour.flatten(-2)
        for share, picture in zip(shares, (context[:, None, ..., : self.picture], first[:, None], *alike.split(self.picture, -1))):
            mixed.addcmul_(share, picture)
        return mixed

    def sample(self, given: Conditions) -> Tensor:
        """Frames of the next chunk, (B, T, h, w, P) in [-1, 1]; fresh noise at every call where the objective is `flow`."""
        rows, height, width, _ = given.pictures.shape
        one = given.pictures.new_ones(rows)
        if self.config.objective == "regression":
            return self.clean(None, one, given).clamp(-1, 1)
        steps = self.config.denoising_steps
        self.scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1].tolist())
        noisy = torch.randn((rows, self.chunk, height, width, self.picture), device=one.device)
        for time, sigma in zip(self.scheduler.timesteps, self.scheduler.sigmas):
            velocity = (noisy - self.clean(noisy, sigma * one, given)) / sigma
            noisy = self.scheduler.step(velocity, time, noisy).prev_sample
        return noisy.clamp(-1, 1)

    def training_prediction(self, target: Tensor, given: Conditions, rng: np.random.Generator) -> Tensor:
        """The clean frames as predicted in one training step: from nothing (`regression`) or from noised targets (`flow`).

        A third of the flow's samples are at pure noise, where few-step sampling decides what happens.
        """
        rows = len(target)
        if self.config.objective == "regression":
            return self.clean(None, torch.ones(rows, device=target.device), given)
        sigma = torch.from_numpy(np.where(rng.random(rows) < 1 / 3, 1.0, rng.random(rows))).float().to(target.device)
        level = sigma[:, None, None, None, None]
        noisy = (1 - level) * target + level * torch.randn_like(target)
        return self.clean(noisy, sigma, given)


class FrameWriter(nn.Module):
    """Features of the chunk -> each of its frames, by a small network that knows where the hand is in that frame.

    One linear map for all frames would have to squeeze every pixel of T frames through `width` numbers; the arm's edges drown in that.
    """

    def __init__(self, width: int, state_size: int, picture: int, out: int):
        super().__init__()
        self.own = nn.Conv2d(ALIKE * picture + MAP_CHANNELS, 2 * width, 1)
        self.shared = nn.Conv2d(width, 2 * width, 1)
        self.pose = nn.Linear(state_size, 2 * width)
        self.out = nn.Conv2d(2 * width, out, 1)
        with torch.no_grad():
            self.out.bias[: out // (SOURCES + 3)] += 2  # the gate of the last frame: begin by copying it

    def forward(self, features: Tensor, pictures: Tensor, states: Tensor) -> Tensor:
        """features (B, width, h, w), each frame's own pictures (B, T, h, w, ALIKE * P + 3), states (B, T, S) -> (B, T, h, w, out)."""
        frames = pictures.shape[:2]
        own = self.own(pictures.flatten(0, 1).movedim(-1, 1))
        own += self.pose(states.flatten(0, 1))[:, :, None, None]  # in place: a fresh tensor of this size costs a CPU as much as a convolution
        own.unflatten(0, frames).add_(self.shared(features)[:, None])
        return self.out(F.gelu(own)).movedim(1, -1).unflatten(0, frames)


def context_frames(frames: Tensor, memory: tuple[int, ...]) -> list[Tensor]:
    """(B, N, ...) -> M of (B, ...): the frames `memory` control steps back, the first one standing in for those before it."""
    last = frames.shape[1] - 1
    return [frames[:, max(last - back, 0)] for back in memory]
