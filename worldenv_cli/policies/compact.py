"""A compact language-conditioned VLA: image + instruction + proprioception -> a chunk of actions, small enough to train on two cores.

The instruction modulates a convolutional encoder (FiLM); one query for each step of the chunk attends to its feature map; an L1 action head
and a Laplace scale head read the queries, as in World-Env on OpenVLA-OFT.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..packing import normalised, pack
from .config import BLOCK, CompactPolicyConfig
from .observation import Observation
from .regression import RegressionPolicy
from .text import TextEncoder


class CompactPolicy(RegressionPolicy):
    def __init__(self, config: CompactPolicyConfig):
        super().__init__()
        self.config = config
        self.register_buffer("state_mean", torch.zeros(config.state_size))
        self.register_buffer("state_std", torch.ones(config.state_size))
        self.text = TextEncoder(config.text)
        self.backbone = Backbone(config)
        self.action_head = _head(config.width, config.action_size)
        self.scale_head = _head(config.width, config.action_size)

    def encode(self, obs: Observation) -> dict[str, Tensor]:
        """image packed (B, h, w, P) in [-1, 1], state (B, S) in its units, text (B, width): the text encoder learns with the rest."""
        image = normalised(pack(obs.images[self.config.camera], BLOCK).to(self.device))
        return {"image": image, "state": torch.from_numpy(obs.state).to(self.device), "text": self.text(obs.instruction)}

    def features(self, encoded: dict[str, Tensor]) -> Tensor:
        return self.backbone(encoded["image"], (encoded["state"] - self.state_mean) / self.state_std, encoded["text"])

    def look(self, frames: np.ndarray) -> list[Tensor]:
        """The output of each convolutional stage, with a neutral instruction."""
        return self.backbone.look(normalised(pack(frames, BLOCK).to(self.device)), self.text([""] * len(frames)))

    def lora_targets(self) -> list[str]:
        return [f"backbone.{name}" for name, module in self.backbone.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]

    def adopt(self, states: np.ndarray, actions: np.ndarray) -> None:
        if not self.state_mean.any():
            self.state_mean.copy_(torch.from_numpy(states.mean(0)))
            self.state_std.copy_(torch.from_numpy(np.maximum(states.std(0), 1e-3)))


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
