"""A compact language-conditioned VLA: image + instruction + proprioception -> a chunk of actions, small enough to train on two cores.

The instruction modulates a convolutional encoder (FiLM); one query for each step of the chunk attends to its feature map; an L1 action head
and a Laplace scale head read the queries, as in World-Env on OpenVLA-OFT.
"""

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Config
from ..packing import normalised, pack
from ..pretrained import Pretrained
from .heads import ChunkDensity, Generators
from .observation import Observation
from .text import TextConfig, TextEncoder

BLOCK = 4  # pixels a side that are folded into channels: see packing.py


class CompactPolicyConfig(Config):
    """Sizes, and the bounds between which the scale head may move."""

    camera: str = "front"
    resolution: int = 64
    chunk: int = 4
    state_size: int = 4
    action_size: int = 4
    channels: tuple[int, int] = (48, 64)
    width: int = 96
    layers: int = Field(2, ge=1)
    text: TextConfig = TextConfig()
    scale_min: float = Field(0.03, gt=0, description="smallest Laplace scale, in action units")
    scale_max: float = Field(0.15, gt=0)
    shared_noise: float = Field(0.7, ge=0, description="part of the exploration noise that is shared along a chunk")


@dataclass
class Act:
    """What `act` did: the chunk before clipping, and its log density for each step."""

    chunk: np.ndarray  # (B, T, A) float32
    log_prob: np.ndarray  # (B, T) float32


class CompactPolicy(Pretrained, nn.Module):
    kind = "policy"

    def __init__(self, config: CompactPolicyConfig):
        super().__init__()
        self.config = config
        self.register_buffer("state_mean", torch.zeros(config.state_size))
        self.register_buffer("state_std", torch.ones(config.state_size))
        self.text = TextEncoder(config.text)
        self.backbone = Backbone(config)
        self.action_head = _head(config.width, config.action_size)
        self.scale_head = _head(config.width, config.action_size)

    @property
    def device(self) -> torch.device:
        return self.state_mean.device

    def forward(self, obs: Observation) -> tuple[Tensor, Tensor]:
        """(mean (B, T, A), log-scale (B, T, A), clamped)."""
        image = normalised(pack(obs.images[self.config.camera], BLOCK).to(self.device))
        return self.from_tensors(image, torch.from_numpy(obs.state).to(self.device), self.text(obs.instruction))

    def from_tensors(self, image: Tensor, state: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """image packed (B, h, w, P) in [-1, 1], state (B, S) in its units, text (B, width)."""
        features = self.backbone(image, (state - self.state_mean) / self.state_std, text)  # (B, T, width)
        return self.action_head(features), self.log_scale(features)

    def log_scale(self, features: Tensor) -> Tensor:
        """features (B, T, width) -> (B, T, A), between the bounds by a smooth clamp, which keeps a gradient there."""
        low, high = np.log(self.config.scale_min), np.log(self.config.scale_max)
        return low + (high - low) * torch.sigmoid(self.scale_head(features))

    def density(self, obs: Observation) -> ChunkDensity:
        mean, log_scale = self(obs)
        return ChunkDensity(mean, log_scale.exp(), self.config.shared_noise)

    @torch.no_grad()
    def act(self, obs: Observation, *, explore: bool, scale: np.ndarray | None = None, generator: Generators = None) -> Act:
        """A chunk for each row: the mean, or with `explore` a sample. `scale` (B,) replaces the scale head's word, where given."""
        density = self.density(obs)
        if scale is not None:
            density.scale = torch.as_tensor(scale, dtype=torch.float32, device=self.device)[:, None, None].expand_as(density.mean)
        if not explore:
            return Act(density.mean.cpu().numpy(), np.zeros(density.mean.shape[:2], np.float32))
        chunk = density.sample(generator)
        return Act(chunk.cpu().numpy(), density.log_prob(chunk).cpu().numpy())

    def log_prob(self, obs: Observation, chunk: np.ndarray) -> Tensor:
        """(B, T) differentiable log density of what `act` sampled."""
        return self.density(obs).log_prob(torch.from_numpy(chunk).to(self.device))


class Backbone(nn.Module):
    """(image, normalised state, text) -> one feature for each step of the chunk, (B, T, width). LoRA adapts this part."""

    def __init__(self, config: CompactPolicyConfig):
        super().__init__()
        text, (fine, coarse) = config.text.width, config.channels
        self.stages = nn.ModuleList([_Stage(3 * BLOCK**2, fine, text, 1), _Stage(fine, coarse, text, 2)])
        self.to_tokens = nn.Conv2d(coarse, config.width, 1)
        side = config.resolution // 8
        self.position = nn.Parameter(torch.randn(side * side, config.width) * 0.02)
        self.state_in = nn.Sequential(nn.Linear(config.state_size, config.width), nn.GELU(), nn.Linear(config.width, config.width))
        self.text_in = nn.Linear(text, config.width)
        self.queries = nn.Parameter(torch.randn(config.chunk, config.width) * 0.02)
        self.layers = nn.ModuleList([_QueryLayer(config.width) for _ in range(config.layers)])

    def look(self, image: Tensor, text: Tensor) -> list[Tensor]:
        """The feature map after each convolutional stage."""
        maps = [image.movedim(-1, 1)]
        for stage in self.stages:
            maps.append(stage(maps[-1], text))
        return maps[1:]

    def forward(self, image: Tensor, state: Tensor, text: Tensor) -> Tensor:
        tokens = self.to_tokens(self.look(image, text)[-1]).flatten(2).transpose(1, 2) + self.position  # (B, side², width)
        body = (self.state_in(state) + self.text_in(text))[:, None]  # (B, 1, width)
        queries = self.queries + body  # (B, T, width)
        tokens = torch.cat([tokens, body], 1)
        for layer in self.layers:
            queries = layer(queries, tokens)
        return queries


class _Stage(nn.Module):
    """Change the resolution, modulate by the instruction, refine once."""

    def __init__(self, inward: int, outward: int, text: int, stride: int):
        super().__init__()
        self.down = nn.Conv2d(inward, outward, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(8, outward)
        self.film = nn.Linear(text, 2 * outward)
        self.refine = nn.Conv2d(outward, outward, 3, padding=1)
        self.refine_norm = nn.GroupNorm(8, outward)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        gain, shift = self.film(text)[:, :, None, None].chunk(2, 1)
        x = F.gelu(torch.addcmul(shift, self.norm(self.down(x)), 1 + gain))
        return x + F.gelu(self.refine_norm(self.refine(x)))


class _QueryLayer(nn.Module):
    """Queries attend to each other and to the tokens, then pass through an MLP; pre-norm. Plain linear maps, so that peft finds them."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm_query, self.norm_tokens, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        source = torch.cat([self.norm_tokens(tokens), self.norm_query(queries)], 1)
        q, k, v = (self._split(x) for x in (self.query(self.norm_query(queries)), self.key(source), self.value(source)))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        queries = queries + self.out(attended)
        return queries + self.down(F.gelu(self.up(self.norm_mlp(queries))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _head(width: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, size))
