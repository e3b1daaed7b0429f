"""SmolVLA: SmolVLM's first layers read pictures, instruction and state once; a narrower expert looks at their keys and values and turns noise
into actions.

With noise at time 1 and normalised actions at time 0, x_t = t noise + (1 - t) action, and the expert predicts the velocity noise - action;
walking back from 1 to 0 (x += dt velocity, dt = -1 / N) gives the actions.

Expert and language model have the same number of layers, heads and sizes of heads. In a joint layer the actions see the prefix and, causally,
each other; in a crossing layer they see the prefix only, whose keys and values pass through the expert's own projections first.
"""

import copy
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...config import Config

if TYPE_CHECKING:
    from transformers import LlamaConfig, SmolVLMConfig

ROPE_BASE = 10_000  # whatever the language model was pretrained with


class SmolVLAConfig(Config):
    vlm: dict = Field(description="SmolVLM's own configuration, as transformers writes it")
    layers: PositiveInt = Field(description="of the language model that are used, the first ones; the expert has as many")
    crossing: tuple[bool, ...] = Field(description="for each layer: whether actions see the prefix only")
    expert_width: float = Field(gt=0, description="times the language model's")
    chunk: PositiveInt
    max_state: PositiveInt = Field(description="what states are padded to")
    max_action: PositiveInt
    image_size: tuple[PositiveInt, PositiveInt] = Field(description="(H, W)")
    empty_cameras: int = Field(ge=0, description="masked pictures after the real ones")
    before_picture: tuple[int, ...] = Field((), description="words before each picture, there for masked ones too; none in most checkpoints")
    after_picture: tuple[int, ...] = Field((), description="words after it")
    shifted_patches: bool = Field(description="trained with the positions of patches off by one: see checkpoint.py")
    min_period: float = Field(gt=0, description="of the sines that embed time")
    max_period: float = Field(gt=0)


class SmolVLA(nn.Module):
    """`vlm` is all that the prefix is made by, `expert` all that the velocity needs beside it.

    In what follows B is rows, K cameras, L tokens, P = K patches + L + 1 the length of the prefix, T steps of a chunk, D what actions are padded to.
    Weights may be of any floating type, of another one in `expert` than in `vlm` too.
    """

    def __init__(self, config: SmolVLAConfig):
        super().__init__()
        from transformers import SmolVLMConfig

        self.config = config
        vlm = SmolVLMConfig.from_dict(config.vlm)
        self.vlm = VisionLanguage(config, vlm)
        self.expert = Expert(config, vlm.text_config)

    @property
    def device(self) -> torch.device:
        return self.vlm.state_proj.weight.device

    @property
    def decoders(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        """The layers of language model and expert."""
        return self.vlm.layers, self.expert.layers

    @property
    def image_tokens(self) -> int:
        """That a picture becomes, with the words around it."""
        patches = (self.config.image_size[0] // self.config.vlm["vision_config"]["patch_size"] // self.config.vlm["scale_factor"]) ** 2
        return patches + len(self.config.before_picture) + len(self.config.after_picture)

    def checkpoint_gradients(self, on: bool = True) -> None:
        """Trade time for memory: where gradients are wanted, each layer of language model and expert is computed again on the way back."""
        self.vlm.gradient_checkpointing = self.expert.gradient_checkpointing = on

    def prepare(self, images: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Cameras in the checkpoint's order, each (B, H, W, 3) uint8 -> pictures (B, K, 3, S, S) float32 in [-1, 1] and mask (B, K) bool.

        A picture keeps its shape and is padded with black on the left and on top.
        """
        seen = torch.stack([self._resized(image) for image in images], 1)
        empty = seen.new_full((len(seen), self.config.empty_cameras, *seen.shape[2:]), -1.0)
        mask = torch.arange(len(images) + self.config.empty_cameras, device=seen.device) < len(images)
        return torch.cat([seen, empty], 1), mask.expand(len(seen), -1)

    def _resized(self, image: np.ndarray) -> Tensor:
        height, width = self.config.image_size
        ratio = max(image.shape[1] / height, image.shape[2] / width)
        inner = int(image.shape[1] / ratio), int(image.shape[2] / ratio)
        pixels = torch.from_numpy(image).to(self.device).movedim(-1, 1).float() / 255
        pixels = F.interpolate(pixels, size=inner, mode="bilinear", align_corners=False)
        return F.pad(pixels, (width - inner[1], 0, height - inner[0], 0)) * 2 - 1

    def prefix(self, images: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor, state: Tensor) -> dict[str, Tensor]:
        """Everything that the velocity depends on beside x and time. Rows come first in every tensor.

        From pictures and mask of `prepare`, token ids and mask (B, L), and the normalised state (B, up to max_state), padded here:
        "keys" and "values" (B, layers, heads, P, d), "mask" (B, P) bool.
        """
        embedded, mask = self.vlm.embed(images, image_mask, tokens, token_mask, state)
        keys, values = self.vlm(embedded, mask)
        return {"keys": keys, "values": values, "mask": mask}

    def velocity(self, prefix: dict[str, Tensor], x: Tensor, time: Tensor) -> Tensor:
        """(B, T, D) at x (B, T, D) and time (B,), in x's type; differentiable, also where the prefix was made without gradients."""
        return self.expert(prefix, x, time)

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, patches, width): what the vision tower makes of single pictures."""
        return self.vlm.image_features(images)


class VisionLanguage(nn.Module):
    """The prefix: pictures, instruction and one token for the state. Of the language model's last layer only keys and values are needed."""

    def __init__(self, config: SmolVLAConfig, vlm: "SmolVLMConfig"):
        super().__init__()
        from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector, SmolVLMVisionTransformer

        self.vision = SmolVLMVisionTransformer(vlm.vision_config)
        self.connector = SmolVLMConnector(vlm)
        self.embed_tokens = nn.Embedding(vlm.text_config.vocab_size, vlm.text_config.hidden_size)
        self.layers = _layers(vlm.text_config, config.layers)
        self.state_proj = nn.Linear(config.max_state, vlm.text_config.hidden_size)
        self.max_state = config.max_state
        self.around = config.before_picture, config.after_picture
        self.shifted_patches, self.side = config.shifted_patches, vlm.vision_config.image_size // vlm.vision_config.patch_size
        self.gradient_checkpointing = False

    def image_features(self, images: Tensor) -> Tensor:
        """The tower's own forward is not used: what it takes for a patch's position has changed from version to version of transformers."""
        tower = self.vision.embeddings
        patches = tower.patch_embedding(images.to(tower.patch_embedding.weight.dtype))  # (B, width, grid, grid)
        grid = patches.shape[-1]
        place = ((torch.arange(grid, device=images.device) * self.side - int(self.shifted_patches)) // grid).clamp_min(0)
        places = (place[:, None] * self.side + place).flatten()
        hidden = self.vision.encoder(patches.flatten(2).transpose(1, 2) + tower.position_embedding(places)).last_hidden_state
        return self.connector(self.vision.post_layernorm(hidden))

    def embed(self, images: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What the first layer is given: (B, P, width), and which of it is there, (B, P) bool."""
        patches = self.image_features(images.flatten(0, 1)).unflatten(0, images.shape[:2])  # (B, K, patches, width)
        root = math.sqrt(patches.shape[-1])
        state = F.pad(state, (0, self.max_state - state.shape[-1])).to(patches.dtype)
        pictures, seen = self._between_words(patches * root, image_mask[..., None].expand(patches.shape[:3]))
        embedded = torch.cat([pictures, self.embed_tokens(tokens) * root, self.state_proj(state)[:, None]], 1)
        return embedded, torch.cat([seen, token_mask, token_mask.new_ones(len(tokens), 1)], 1).bool()

    def _between_words(self, patches: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, K, patches, width) and mask (B, K, patches) -> (B, K tokens, width) and (B, K tokens), each picture between its words.

        The words are not scaled as those of an instruction are, and are there where the picture is masked too.
        """
        words = [
            self.embed_tokens(torch.tensor(ids, dtype=torch.long, device=patches.device)).expand(*patches.shape[:2], -1, -1) for ids in self.around
        ]
        there = [mask.new_ones(*mask.shape[:2], len(ids)) for ids in self.around]
        return torch.cat([words[0], patches, words[1]], 2).flatten(1, 2), torch.cat([there[0], mask, there[1]], 2).flatten(1, 2)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all layers, each (B, layers, heads, P, d). What is absent is masked and takes up no position."""
        seen = mask[:, None, None].repeat(1, 1, mask.shape[1], 1)  # (B, 1, P, P): from every query, keys that are there
        seen[:, :, :-1, -1] = False  # the state sees everything and is seen by itself and the actions
        rotation = _rotation(mask.cumsum(1) - 1, self.layers[0].self_attn.head_dim)
        kept = []
        for layer in self.layers:
            query, key, value = _projected(layer, hidden, rotation)
            kept.append((key, value))
            if len(kept) < len(self.layers):
                hidden = _recomputable(self.gradient_checkpointing, _finished, layer, hidden, query, key, value, seen)
        return tuple(torch.stack(tensors, 1) for tensors in zip(*kept, strict=True))


class Expert(nn.Module):
    """The velocity, from noisy actions and time, given the prefix."""

    def __init__(self, config: SmolVLAConfig, text: "LlamaConfig"):
        super().__init__()
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        narrow = copy.deepcopy(text)
        narrow.hidden_size = width = int(text.hidden_size * config.expert_width)
        narrow.intermediate_size = -(-4 * (2 * width // 3) // 256) * 256
        self.crossing, self.periods = config.crossing, (config.min_period, config.max_period)
        self.layers = _layers(narrow, config.layers)
        size = text.num_key_value_heads * text.head_dim
        for layer, crossing in zip(self.layers, config.crossing, strict=True):
            if crossing:
                layer.self_attn.k_proj, layer.self_attn.v_proj = (nn.Linear(size, size, bias=text.attention_bias) for _ in "kv")
        self.norm = LlamaRMSNorm(width, text.rms_norm_eps)
        self.action_in_proj = nn.Linear(config.max_action, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)
        self.action_out_proj = nn.Linear(width, config.max_action)
        self.gradient_checkpointing = False

    def forward(self, prefix: dict[str, Tensor], x: Tensor, time: Tensor) -> Tensor:
        dtype, steps, there = self.norm.weight.dtype, torch.arange(x.shape[1], device=x.device), prefix["mask"]
        actions = self.action_in_proj(x.to(dtype))
        moment = self._embedded(time)[:, None].expand_as(actions).to(dtype)
        hidden = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(torch.cat([actions, moment], -1))))
        before = there[:, None, None].expand(-1, -1, len(steps), -1)  # (B, 1, T, P)
        causal = (steps[:, None] >= steps).expand(len(x), 1, -1, -1)
        size = self.layers[0].self_attn.head_dim
        joint = torch.cat([before, causal], -1), _rotation(there.sum(1, keepdim=True) + steps, size)
        across = before, _rotation(steps[None], size)  # positions begin again
        pairs = zip(prefix["keys"].to(dtype).unbind(1), prefix["values"].to(dtype).unbind(1), strict=True)
        for layer, crossing, (key, value) in zip(self.layers, self.crossing, pairs, strict=True):
            compute, how = (_crossed, across) if crossing else (_joined, joint)
            hidden = _recomputable(self.gradient_checkpointing, compute, layer, hidden, key, value, *how)
        return self.action_out_proj(self.norm(hidden)).to(x.dtype)

    def _embedded(self, time: Tensor) -> Tensor:
        """time (B,) in [0, 1] -> sines and cosines (B, width) float64, of periods from min_period to max_period."""
        exact = torch.float32 if time.device.type == "mps" else torch.float64  # which Apple's GPUs lack
        low, high = self.periods
        step = torch.linspace(0, 1, len(self.norm.weight) // 2, dtype=exact, device=time.device)
        angle = 2 * math.pi / (low * (high / low) ** step) * time[:, None].to(exact)
        return torch.cat([angle.sin(), angle.cos()], -1)


# Layers: transformers' Llama for their weights; what attends to what is SmolVLA's own


def _layers(config: "LlamaConfig", count: int) -> nn.ModuleList:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    return nn.ModuleList(LlamaDecoderLayer(config, index) for index in range(count))


def _joined(layer: nn.Module, hidden: Tensor, key: Tensor, value: Tensor, seen: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    query, own_key, own_value = _projected(layer, hidden, rotation)
    return _finished(layer, hidden, query, torch.cat([key, own_key], 2), torch.cat([value, own_value], 2), seen)


def _crossed(layer: nn.Module, hidden: Tensor, key: Tensor, value: Tensor, seen: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """The prefix's keys come with their rotation, and the projection does not add one."""
    attention = layer.self_attn
    query = _rotated(_heads(attention.q_proj(layer.input_layernorm(hidden)), attention.head_dim), rotation)
    pair = ((attention.k_proj, key), (attention.v_proj, value))
    key, value = (_heads(project(tensor.transpose(1, 2).flatten(2)), attention.head_dim) for project, tensor in pair)
    return _finished(layer, hidden, query, key, value, seen)


def _projected(layer: nn.Module, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each (B, heads, length, d); the first two rotated."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    query, key, value = (_heads(project(normed), attention.head_dim) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
    return _rotated(query, rotation), _rotated(key, rotation), value


def _finished(layer: nn.Module, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """The rest of a layer. seen (B, 1, queries, keys) bool, at least one key for every query."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2).flatten(2)
    hidden = hidden + layer.self_attn.o_proj(attended)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _heads(x: Tensor, size: int) -> Tensor:
    """(B, length, heads d) -> (B, heads, length, d)"""
    return x.unflatten(-1, (-1, size)).transpose(1, 2)


def _rotation(positions: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """positions (B, length) -> cosine and sine (B, 1, length, d / 2) float32"""
    period = ROPE_BASE ** (torch.arange(size // 2, device=positions.device) * (2.0 / size))
    angle = positions[:, None, :, None].float() / period
    return angle.cos(), angle.sin()


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rotation
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1).to(x.dtype)


def _recomputable(again: bool, function, *arguments) -> Tensor:
    if again and torch.is_grad_enabled():
        return checkpoint(function, *arguments, use_reentrant=False)
    return function(*arguments)
