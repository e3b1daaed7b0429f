"""OpenVLA-OFT: two vision towers, a projector and a Llama that answers a whole chunk of actions in one pass.

    pictures -> DINOv2 | SigLIP -> projector ─┐
    proprioception -> proprio_projector ──────┤
    [BOS] patches, proprioception, prompt, T·A empty places, stop -> Llama, attending in both directions -> T·A hidden states
    hidden states -> action_head (L1)  or  lm_head (action tokens)

The towers and the language model are transformers' own, so that LoRA, gradient checkpointing and fused attention work as anywhere.
"""

import warnings
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import Config


class TowerConfig(Config):
    """A vision transformer, up to the block before its last one: that is where the features are taken, before any norm."""

    width: int
    depth: int = Field(ge=1, description="blocks that run: one less than the published tower has")
    heads: int
    mlp: int
    patch: int = Field(14, description="pixels a side")
    grid: int = Field(16, description="patches a side")
    registers: int = 0


class LanguageConfig(Config):
    vocabulary: int
    width: int
    depth: int
    heads: int
    key_value_heads: int
    mlp: int
    norm_eps: float = 1e-6
    rope_base: float = 10000.0
    padding: int = 32000


class HeadConfig(Config):
    width: int
    blocks: int


class OpenVLAConfig(Config):
    """Sizes of a checkpoint. Its tensors say them, but for `images` and `chunk`, which nothing in the published files does."""

    dino: TowerConfig
    siglip: TowerConfig
    language: LanguageConfig
    images: int = Field(ge=1)
    chunk: int = Field(ge=1, description="T: control steps that one answer holds")
    action_size: int = Field(ge=1)
    proprio_size: int | None = Field(None, description="none: the policy does not feel its body")
    head: HeadConfig | None = Field(None, description="the L1 action head; none: actions are tokens")
    bins: int = Field(256, description="action tokens")
    bins_end: int = Field(32000, description="the first id after theirs: what pads the vocabulary to a multiple of 64 comes later")

    @property
    def features(self) -> int:
        """Width of the towers' features side by side."""
        return self.dino.width + self.siglip.width


class OpenVLA(nn.Module):
    """See the module. Weights may be float32 or bfloat16; what comes in is cast to them.

    Let `requires_grad` and `torch.no_grad` decide what trains: no part is frozen here.
    """

    def __init__(self, config: OpenVLAConfig):
        super().__init__()
        from transformers import LlamaForCausalLM

        self.config, width = config, config.language.width
        self.vision = VisionTowers(config.dino, config.siglip)
        self.projector = Projector(config.features, width)
        self.language_model = LlamaForCausalLM(_llama(config.language))
        self.proprio_projector = None if config.proprio_size is None else ProprioProjector(config.proprio_size, width)
        self.action_head = None if config.head is None else L1ActionHead(width, config.action_size, config.head)

    @classmethod
    def empty(cls, config: OpenVLAConfig) -> Self:
        """A model without memory for its weights, for `load_state_dict(..., assign=True)`; only what no checkpoint holds is there."""
        with torch.device("meta"):
            model = cls(config)
        for module in list(model.modules()):
            for name, buffer in list(module.named_buffers(recurse=False)):
                if name == "position_ids":
                    module.register_buffer(name, torch.arange(buffer.shape[-1])[None], persistent=False)
        language = model.language_model.model
        language.rotary_emb = type(language.rotary_emb)(language.config)
        return model

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.lm_head.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.language_model.lm_head.weight.device

    def vision_features(self, pixels: Tensor) -> Tensor:
        """pixels (B, 6K, S, S) as inputs.pixels makes them -> (B, K·P, D), picture after picture, DINOv2's features beside SigLIP's."""
        return self.vision(pixels)

    def project(self, features: Tensor) -> Tensor:
        """(B, K·P, D) -> patch embeddings (B, K·P, H)."""
        return self.projector(features.to(self.dtype))

    def proprio_embedding(self, proprio: Tensor) -> Tensor:
        """Normalised proprioception (B, S) -> (B, 1, H). Only for policies with a `proprio_size`."""
        return self.proprio_projector(proprio.to(self.dtype))[:, None]

    def sequence(self, patches: Tensor, proprio_embedding: Tensor | None, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(embeddings (B, N, H), mask (B, N), first (B,)): what the language model reads, and where in it the T·A hidden states of the actions begin.

        That is one position before the first empty place, for a state predicts what comes next.
        input_ids (B, L) and attention_mask (B, L) come from Prompts.batch.
        """
        context = patches if proprio_embedding is None else torch.cat([patches, proprio_embedding], 1)
        attention_mask = attention_mask.bool()
        stop = attention_mask.sum(1) - 1  # padding is on the right
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        places = self.config.chunk * self.config.action_size
        empty = (place >= stop[:, None] - places) & (place < stop[:, None])
        words = self.language_model.get_input_embeddings()(input_ids).masked_fill(empty[..., None], 0)
        embeddings = torch.cat([words[:, :1], context.to(words.dtype), words[:, 1:]], 1)
        mask = torch.cat([attention_mask.new_ones(context.shape[:2]), attention_mask], 1)
        return embeddings, mask, context.shape[1] + stop - places - 1

    def action_hidden_states(
        self, patches: Tensor, proprio_embedding: Tensor | None, input_ids: Tensor, attention_mask: Tensor, stop: bool = False
    ) -> Tensor:
        """(B, T·A, H): the language model's last states for the actions, step by step; with `stop` one more, which predicts the stop token.

        patches (B, K·P, H) and proprio_embedding (B, 1, H) as above, input_ids and attention_mask (B, L) as Prompts.batch gives them. Every token
        sees every other one but padding, so that rows of a batch get what they get alone.
        """
        embeddings, mask, first = self.sequence(patches, proprio_embedding, input_ids, attention_mask)
        states = self.language_model.model(inputs_embeds=embeddings, attention_mask=visible(mask), use_cache=False).last_hidden_state
        count = self.config.chunk * self.config.action_size + stop
        chosen = first[:, None] + torch.arange(count, device=first.device)
        return states.gather(1, chosen[..., None].expand(-1, -1, states.shape[-1]))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., vocabulary)."""
        return self.language_model.lm_head(hidden)

    @property
    def action_tokens(self) -> "ActionTokens":
        return ActionTokens(self.config.bins, self.config.bins_end)

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute blocks in the backward pass instead of keeping them, in training mode, which changes nothing else: there is no dropout."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # renamed in transformers 5.24; earlier ones only know these names
            for part in (self.language_model, self.vision.dino, self.vision.siglip):
                if on:
                    part.gradient_checkpointing_enable({"use_reentrant": False})
                else:
                    part.gradient_checkpointing_disable()


def visible(mask: Tensor) -> Tensor:
    """Which keys are real (B, N) -> which key each query sees (B, 1, N, N): all real ones. transformers takes four dimensions as they are."""
    return mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)


class VisionTowers(nn.Module):
    """DINOv2 with registers and SigLIP, both without their last block, norm and pooling, which OpenVLA does not use."""

    def __init__(self, dino: TowerConfig, siglip: TowerConfig):
        super().__init__()
        from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, SiglipVisionConfig, SiglipVisionModel

        shared = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "attn_implementation": "sdpa"}
        self.prefix = 1 + dino.registers
        self.dino = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**_vit(dino), **shared, mlp_ratio=dino.mlp // dino.width, num_register_tokens=dino.registers)
        )
        self.siglip = SiglipVisionModel(SiglipVisionConfig(**_vit(siglip), **shared, intermediate_size=siglip.mlp, vision_use_head=False))
        self.dino.embeddings.mask_token = None  # for pre-training only
        for tower in (self.dino, self.siglip):
            [norm] = [name for name, _ in tower.named_modules() if name.endswith("layernorm")]  # its place depends on the version of transformers
            tower.set_submodule(norm, nn.Identity())

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 6K, S, S) -> (B, K·P, D)."""
        pictures = pixels.unflatten(1, (-1, 2, 3))  # (B, K, tower, 3, S, S)
        dino = self.dino(pictures[:, :, 0].flatten(0, 1)).last_hidden_state[:, self.prefix :]
        siglip = self.siglip(pictures[:, :, 1].flatten(0, 1)).last_hidden_state
        return torch.cat([dino, siglip], -1).unflatten(0, pictures.shape[:2]).flatten(1, 2)


def _vit(tower: TowerConfig) -> dict:
    sizes = {"hidden_size": tower.width, "num_hidden_layers": tower.depth, "num_attention_heads": tower.heads}
    return {**sizes, "patch_size": tower.patch, "image_size": tower.patch * tower.grid}


def _llama(config: LanguageConfig):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        pad_token_id=config.padding,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )


class Projector(nn.Module):
    """Patch features (..., D) -> the language model's width (..., H)."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(features, 4 * features), nn.Linear(4 * features, width), nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class ProprioProjector(nn.Module):
    """Normalised proprioception (..., S) -> (..., H)."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, width), nn.Linear(width, width)

    def forward(self, proprio: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(proprio)))


class L1ActionHead(nn.Module):
    """The A hidden states of a control step -> its action, normalised and not bounded."""

    def __init__(self, width: int, action_size: int, config: HeadConfig):
        super().__init__()
        self.action_size = action_size
        self.model = MLPResNet(width * action_size, config, action_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T·A, H) -> (B, T, A)."""
        return self.model(hidden.unflatten(1, (-1, self.action_size)).flatten(2))


class MLPResNet(nn.Module):
    """(..., inward) -> (..., outward), with names as in the published head's file."""

    def __init__(self, inward: int, config: HeadConfig, outward: int):
        super().__init__()
        self.layer_norm1, self.fc1 = nn.LayerNorm(inward), nn.Linear(inward, config.width)
        self.mlp_resnet_blocks = nn.ModuleList(_ResidualBlock(config.width) for _ in range(config.blocks))
        self.layer_norm2, self.fc2 = nn.LayerNorm(config.width), nn.Linear(config.width, outward)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class _ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class ActionTokens:
    """Normalised actions as the last tokens of Llama's own vocabulary: the id falls as the action rises."""

    def __init__(self, bins: int, end: int):
        self.end = end
        self.ids = slice(end - bins, end)  # of these tokens in a row of logits
        self.edges = torch.linspace(-1, 1, bins, dtype=torch.float64)
        self.centres = (self.edges[:-1] + self.edges[1:]) / 2  # one less than there are tokens

    def encode(self, actions: Tensor) -> Tensor:
        """Normalised actions of any shape -> token ids int64; what is beyond [-1, 1] gets the outermost ones."""
        return self.end - torch.bucketize(actions.double().clamp(-1, 1), self.edges.to(actions.device), right=True)

    def decode(self, ids: Tensor) -> Tensor:
        """Token ids of any shape -> centres of their bins, float64. Tokens that mean no action count as the outermost ones."""
        return self.centres.to(ids.device)[(self.end - ids - 1).clamp(0, len(self.centres) - 1)]
