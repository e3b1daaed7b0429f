"""pi0: PaliGemma reads pictures and instruction once; a smaller Gemma, the action expert, looks at its keys and values and turns noise into actions.

With noise at time 1 and normalised actions at time 0, x_t = t noise + (1 - t) action, and the expert predicts the velocity noise - action;
walking back from 1 to 0 (x += dt velocity, dt = -1 / N) gives the actions.

All layers are those of transformers' `PI0ForConditionalGeneration`. What is done here instead of its `forward`:
* the prefix is kept as plain tensors with the rows first, so that rows can be picked, joined and used again, with gradients in the expert only;
* a layer may be computed a second time (gradient checkpointing), which transformers refuses while there is a cache;
* time is embedded in float64, as openpi and lerobot do: transformers' float32 moves actions by 5e-5;
* an absent camera is masked and takes up no position, as in lerobot.
"""

import functools
import inspect
import math
from collections.abc import Callable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...config import Config
from ...errors import UserError

# Linear modules of the two Gemmas for peft's `target_modules`, which matches whole names; what owns the model does not matter.
EXPERT_LINEARS = r"(.*\.)?expert\.dit\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
LANGUAGE_LINEARS = r"(.*\.)?vlm\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


class Pi0Config(Config):
    architecture: dict = Field(description="what transformers' PI0Config is made of: sizes of vlm_config and dit_config, chunk_size, periods")
    cameras: int | None = Field(None, ge=1, description="pictures that the model has room for; none: as many as it is given")


class Pi0(nn.Module):
    """`vlm` is all that the prefix is made by, `expert` all that the velocity needs beside it.

    In what follows B is rows, K cameras, S the side of a picture in pixels, L tokens, P the length of the prefix, T steps of a chunk, D what
    actions are padded to. Weights may be of any floating type, of another one in `expert` than in `vlm` too.
    """

    def __init__(self, config: Pi0Config):
        super().__init__()
        from transformers import PI0Config, PI0ForConditionalGeneration

        self.config = config
        whole = PI0ForConditionalGeneration(PI0Config.from_dict(config.architecture))
        self.vlm, self.expert = whole.model.vlm, Expert(whole)
        self.max_state, self.image_size = whole.config.max_state_dim, whole.config.vlm_config.vision_config.image_size
        self.recomputed = False

    @property
    def device(self) -> torch.device:
        return self.expert.action_out_proj.weight.device

    @property
    def decoders(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        """The layers of language model and expert."""
        return self.vlm.language_model.layers, self.expert.dit.layers

    @property
    def image_tokens(self) -> int:
        """That a picture becomes."""
        return (self.image_size // self.vlm.config.vision_config.patch_size) ** 2

    def checkpoint_gradients(self, on: bool = True) -> None:
        """Trade time for memory: where gradients are wanted, the vision tower and each layer of language model and expert are computed again
        on the way back.
        """
        self.recomputed = self.expert.recomputed = on

    def prepare(self, images: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Cameras in the checkpoint's order, each (B, H, W, 3) uint8 -> pictures (B, K, 3, S, S) float32 in [-1, 1] and mask (B, K) bool.

        A picture keeps its shape and is centred on black. With fewer cameras than the checkpoint has, the rest is black and masked.
        Raises UserError for none, and for more than that.
        """
        most = self.config.cameras or max(len(images), 1)
        if not 0 < len(images) <= most:
            raise UserError(f"pi0 was given {len(images)} cameras: this checkpoint takes 1 to {most}; name the ones that it was trained with")
        seen = torch.stack([self._resized(image) for image in images], 1)
        absent = seen.new_full((len(seen), most - len(images), *seen.shape[2:]), -1.0)
        mask = torch.arange(most, device=seen.device) < len(images)
        return torch.cat([seen, absent], 1), mask.expand(len(seen), -1)

    def _resized(self, image: np.ndarray) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, S, S) in [-1, 1], bilinear without antialiasing.

        Black is -1, as in openpi and in lerobot since 0.5. lerobot 0.4 padded with -1 *before* it mapped [0, 1] to [-1, 1], which gives -3.
        """
        side, (height, width) = self.image_size, image.shape[1:3]
        ratio = max(height, width) / side
        inner = int(height / ratio), int(width / ratio)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self.device).movedim(-1, 1).float() / 255
        pixels = F.interpolate(pixels, size=inner, mode="bilinear", align_corners=False).clamp(0, 1)
        top, left = (side - inner[0]) // 2, (side - inner[1]) // 2
        return F.pad(pixels, (left, side - inner[1] - left, top, side - inner[0] - top)) * 2 - 1

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, patches, width): what the vision tower makes of single pictures."""
        return self.vlm.get_image_features(images).pooler_output

    def embed(self, images: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """What the language model is given: (B, P, width), all pictures and then the words, and which of it is there, (B, P) bool."""
        words = self.vlm.language_model.embed_tokens(tokens)  # times sqrt(width), unlike the pictures
        patches = _again(self.recomputed, self.image_features, images.flatten(0, 1))
        patches = patches.unflatten(0, images.shape[:2]).to(words.dtype)  # (B, K, patches, width)
        mask = torch.cat([image_mask[..., None].expand(patches.shape[:3]).flatten(1), token_mask], 1)
        return torch.cat([patches.flatten(1, 2), words], 1), mask.bool()

    def prefix(self, images: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor, state: Tensor) -> dict[str, Tensor]:
        """Everything that the velocity depends on beside x and time. Rows come first in every tensor.

        From pictures and mask of `prepare`, token ids and mask (B, L), and the normalised state (B, up to max_state_dim), padded here:
        "keys" and "values" (B, layers, heads, P, d), "mask" (B, P) bool, "state" (B, max_state_dim). Cameras that all rows lack are left out,
        as they change nothing.
        """
        there = image_mask.any(0)
        hidden, mask = self.embed(images[:, there], image_mask[:, there], tokens, token_mask)
        _, kept = _run(self.vlm.language_model, hidden, mask[:, None, None], mask.cumsum(1) - 1, None, self.recomputed)
        keys, values = (torch.stack(tensors, 1) for tensors in zip(*kept, strict=True))
        return {"keys": keys, "values": values, "mask": mask, "state": padded(state, self.max_state)}

    def velocity(self, prefix: dict[str, Tensor], x: Tensor, time: Tensor) -> Tensor:
        """(B, T, D) at x (B, T, D) and time (B,), in x's type; differentiable, also where the prefix was made without gradients.

        The prefix is left as it is.
        """
        return self.expert(prefix, x, time)


class Expert(nn.Module):
    """The velocity, from noisy actions and time, given prefix and state. The state sees the prefix; actions see both and each other."""

    def __init__(self, whole: nn.Module):
        super().__init__()
        self.dit, self.embed_action_time, self.action_out_proj = whole.model.dit, whole.embed_action_time, whole.action_out_proj
        self.dit.embed_tokens = None  # it is never given words
        self.periods = whole.config.min_period, whole.config.max_period
        self.recomputed = False

    def forward(self, prefix: dict[str, Tensor], x: Tensor, time: Tensor) -> Tensor:
        """As `Pi0.velocity`. The small projections may be of another type than the layers."""
        project, there, steps = self.embed_action_time, prefix["mask"], x.shape[1]
        dtype = self.action_out_proj.weight.dtype
        state = project.state_proj(prefix["state"].to(dtype))[:, None]
        actions = project.action_in_proj(x.to(dtype))
        moment = self._embedded(time)[:, None].expand_as(actions).to(dtype)
        actions = project.action_time_mlp_out(F.silu(project.action_time_mlp_in(torch.cat([actions, moment], -1))))
        hidden = torch.cat([state, actions], 1).to(self.dit.norm.weight.dtype)

        own = torch.ones(1 + steps, 1 + steps, dtype=torch.bool, device=x.device)
        own[0, 1:] = False
        mask = torch.cat([there[:, None].expand(-1, 1 + steps, -1), own.expand(len(x), -1, -1)], -1)[:, None]  # (B, 1, 1 + T, P + 1 + T)
        positions = there.sum(1, keepdim=True) + torch.arange(1 + steps, device=x.device)
        before = list(zip(prefix["keys"].unbind(1), prefix["values"].unbind(1), strict=True))
        hidden, _ = _run(self.dit, hidden, mask, positions, before, self.recomputed)
        return self.action_out_proj(hidden[:, 1:].to(dtype)).to(x.dtype)

    def _embedded(self, time: Tensor) -> Tensor:
        """time (B,) in [0, 1] -> sines and cosines (B, width) float64, of periods from min_period to max_period."""
        exact = torch.float32 if time.device.type == "mps" else torch.float64  # which Apple's GPUs lack
        low, high = self.periods
        step = torch.linspace(0, 1, self.action_out_proj.in_features // 2, dtype=exact, device=time.device)
        angle = 2 * math.pi / (low * (high / low) ** step) * time[:, None].to(exact)
        return torch.cat([angle.sin(), angle.cos()], -1)


Pairs = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (B, heads, length, d)


def _run(gemma: nn.Module, hidden: Tensor, mask: Tensor, positions: Tensor, before: Pairs | None, recomputed: bool) -> tuple[Tensor, Pairs]:
    """All layers of a Gemma -> its output and each layer's own keys and values; `before` holds those that come in front of them.

    mask (B, 1, queries or 1, keys) bool, positions (B, queries).
    """
    added = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~mask, torch.finfo(hidden.dtype).min)
    arguments = {"attention_mask": added, "position_ids": positions, "position_embeddings": gemma.rotary_emb(hidden, positions)}
    kept = []
    for index, layer in enumerate(gemma.layers):
        hidden, *own = _again(recomputed, _layer, layer, arguments, before[index] if before else None, hidden)
        kept.append(tuple(own))
    return gemma.norm(hidden), kept


def _again(recomputed: bool, function: Callable, *arguments):
    if recomputed and torch.is_grad_enabled():
        return checkpoint(function, *arguments, use_reentrant=False)
    return function(*arguments)


def _layer(layer: Callable, arguments: dict, before: tuple[Tensor, Tensor] | None, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    cache = _LayerCache(before)
    return layer(hidden, **arguments, **{_cache_argument(): cache}), *cache.own


class _LayerCache:
    """What an attention layer takes for a cache: it puts keys and values in front of the layer's own and never grows.

    transformers' DynamicCache does, so that a layer that is computed again would see itself twice.
    """

    def __init__(self, before: tuple[Tensor, Tensor] | None):
        self.before = before

    def update(self, keys: Tensor, values: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        self.own = keys, values
        if self.before is None:
            return keys, values
        return tuple(torch.cat([old.to(new.dtype), new], -2) for old, new in zip(self.before, self.own, strict=True))


@functools.cache
def _cache_argument() -> str:
    """What transformers' layers call their cache: renamed in 5.24."""
    from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer

    return "cache" if "cache" in inspect.signature(GemmaDecoderLayer.forward).parameters else "past_key_values"


def padded(x: Tensor, size: int) -> Tensor:
    """(..., up to size) -> (..., size), with zeros."""
    return F.pad(x, (0, size - x.shape[-1]))
