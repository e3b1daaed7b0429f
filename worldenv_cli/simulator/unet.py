"""The picture half of the simulator: a U-Net of diffusers that makes the frames of one action chunk from context frames and action maps.

Pictures are held *packed*: blocks of pixels folded into channels, (3 * block**2, H / block, W / block). The network works at that resolution, and
no pixel is moved about between one imagined chunk and the next: on a CPU that costs more than the convolutions.

It does not paint what it can copy: for every pixel of every frame a softmax mixes the last frame, the episode's first frame (what the arm
uncovers again) and newly made colour.

The same network serves two objectives. `flow`: it sees noisy target frames at level sigma and predicts the clean ones; a few Euler steps of
diffusers' flow-matching scheduler make a sample. `regression`: there is no target input, sigma is 1, and one pass is the prediction.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import Config
from .conditioning import MAP_CHANNELS


class UNetConfig(Config):
    channels: tuple[int, ...] = (64, 96, 128)
    layers: int = Field(1, ge=1, description="residual blocks at each resolution")
    block: int = Field(4, ge=1, description="pixels a side that one position of the network holds")
    memory: tuple[int, ...] = Field(
        (0, 1, 6), description="context frames, in control steps before the chunk; the first frame comes on top"
    )
    objective: Literal["regression", "flow"] = "regression"
    denoising_steps: int = Field(3, ge=1, description="Euler steps of the flow sampler")


class VideoUNet(nn.Module):
    def __init__(self, config: UNetConfig, chunk: int):
        super().__init__()
        from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

        self.config, self.chunk = config, chunk
        self.picture = 3 * config.block**2  # channels of one packed picture
        width, depth = config.channels[0], len(config.channels)
        self.read = nn.Conv2d(self.picture * (len(config.memory) + 1) + MAP_CHANNELS * (chunk + 1), width, 1)
        self.read_noisy = nn.Conv2d(self.picture * chunk, width, 1)
        self.write = nn.Conv2d(width, 2 * self.picture * chunk, 1)
        self.network = UNet2DModel(
            in_channels=width,
            out_channels=width,
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            down_block_types=("DownBlock2D",) * depth,
            up_block_types=("UpBlock2D",) * depth,
            add_attention=False,
            norm_num_groups=8,
        )
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    def clean(self, noisy: Tensor | None, sigma: Tensor, context: Tensor, first: Tensor, maps: Tensor) -> Tensor:
        """The network's word for the clean frames, (B, T, P, h, w) packed.

        noisy (B, T, P, h, w) or None, sigma (B,), context (B, M, P, h, w) with the last frame first, first (B, P, h, w), maps (B, T + 1, 3, h, w).
        Pictures are in [-1, 1].
        """
        given = torch.cat([context.flatten(1, 2), first, maps.flatten(1, 2)], 1)
        x = self.read(given.contiguous(memory_format=torch.channels_last))
        if noisy is not None:
            x = x + self.read_noisy(noisy.flatten(1, 2).contiguous(memory_format=torch.channels_last))
        out = self.write(self.network(x, sigma * 1000).sample).contiguous()
        gates, colour = out.unflatten(1, (self.chunk, 2, 3, -1)).unbind(2)  # (B, T, 3, block², h, w) each
        bias = gates.new_tensor([2.0, 0.0, 0.0])[:, None, None, None]  # begin by copying
        last, start, new = (gates + bias).softmax(2).unbind(2)  # (B, T, block², h, w): one mixture for the three colours of a pixel
        sources = context[:, None, 0].unflatten(2, (3, -1)), first[:, None].unflatten(2, (3, -1)), colour
        return sum(share[:, :, None] * source for share, source in zip((last, start, new), sources)).flatten(2, 3)

    def sample(self, context: Tensor, first: Tensor, maps: Tensor) -> Tensor:
        """Frames of the next chunk, (B, T, P, h, w) in [-1, 1]; fresh noise at every call where the objective is `flow`."""
        one = torch.ones(len(first), device=first.device)
        if self.config.objective == "regression":
            return self.clean(None, one, context, first, maps).clamp(-1, 1)
        steps = self.config.denoising_steps
        self.scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1].tolist())
        noisy = torch.randn((len(first), self.chunk, *first.shape[1:]), device=first.device)
        for time, sigma in zip(self.scheduler.timesteps, self.scheduler.sigmas):
            velocity = (noisy - self.clean(noisy, sigma * one, context, first, maps)) / sigma
            noisy = self.scheduler.step(velocity, time, noisy).prev_sample
        return noisy.clamp(-1, 1)

    def training_prediction(self, target: Tensor, context: Tensor, first: Tensor, maps: Tensor, rng: np.random.Generator) -> Tensor:
        """The clean frames as predicted in one training step: from nothing (`regression`) or from noised targets (`flow`).

        A third of the flow's samples are at pure noise, where few-step sampling decides what happens.
        """
        rows = len(target)
        if self.config.objective == "regression":
            return self.clean(None, torch.ones(rows), context, first, maps)
        sigma = torch.from_numpy(np.where(rng.random(rows) < 1 / 3, 1.0, rng.random(rows))).float()
        level = sigma[:, None, None, None, None]
        noisy = (1 - level) * target + level * torch.randn_like(target)
        return self.clean(noisy, sigma, context, first, maps)


def context_frames(frames: Tensor, memory: tuple[int, ...]) -> Tensor:
    """(B, N, ...) -> (B, M, ...): the frames `memory` control steps back, the first one standing in for those before it."""
    last = frames.shape[1] - 1
    return frames[:, [max(last - back, 0) for back in memory]]
