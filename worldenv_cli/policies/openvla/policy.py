"""OpenVLA-OFT as a policy: its L1 head with a scale head beside it, or its action tokens.

The vision towers are frozen, so what they make of an observation is kept and serves scoring it again. Everything behind them may learn: the
projector and the language model through an adapter, the heads and the projection of proprioception in full.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.statistics import column_statistics
from ...errors import UserError
from ..densities import Generators, TokenDensity
from ..lora import AdaptedPolicy
from ..observation import Observation
from ..policy import Act, Policy, Stack
from ..regression import RegressionPolicy
from ..vla import VLAConfig
from .checkpoint import OpenVLACheckpoint
from .inputs import Bounds, ImageConfig, pixels
from .model import visible


class Scaler(nn.Module):
    """`inputs.Bounds` as tensors that a run keeps. `known` is False until there are statistics."""

    def __init__(self, size: int, bounds: Bounds | None):
        super().__init__()
        self.register_buffer("low", torch.zeros(size))
        self.register_buffer("span", torch.full((size,), 2.0))
        self.register_buffer("mask", torch.ones(size, dtype=torch.bool))
        self.register_buffer("constant", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("known", torch.tensor(bounds is not None))
        if bounds is not None:
            self.take(np.array(bounds.low), np.array(bounds.high), np.array(bounds.mask), np.array(bounds.constant))

    def take(self, low: np.ndarray, high: np.ndarray, mask: np.ndarray, constant: np.ndarray) -> None:
        for buffer, values in ((self.low, low), (self.span, high - low + 1e-8), (self.mask, mask), (self.constant, constant)):
            buffer.copy_(torch.from_numpy(values))
        self.known.fill_(True)

    def normalise(self, x: Tensor) -> Tensor:
        """(..., D) in the robot's units -> clipped to [-1, 1] where the mask says so."""
        inside = (2 * (x - self.low) / self.span - 1).clamp(-1, 1)
        return torch.where(self.constant, 0.0, torch.where(self.mask, inside, x))

    def unnormalise(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, (x + 1) / 2 * self.span + self.low, x)


class OpenVLAPart(Policy):
    """What both variants share: what is seen, units, and the language model's answer."""

    def __init__(self, config: VLAConfig, checkpoint: OpenVLACheckpoint):
        super().__init__()
        own = config.statistics == "checkpoint"
        self.config, self.model, self.prompts = config, checkpoint.model, checkpoint.prompts
        self.pictures = checkpoint.images.model_copy(
            update={"jpeg": ImageConfig().jpeg if config.jpeg else None, "crop": 0.9 if config.crop else None}
        )
        self.actions = Scaler(self.model.config.action_size, checkpoint.statistics.action if own else None)
        self.body = Scaler(config.state_size, checkpoint.statistics.proprio if own and self.model.config.proprio_size else None)
        self.proprio_projector, self.model.proprio_projector = self.model.proprio_projector, None
        if self.proprio_projector is not None:
            self.proprio_projector.float()

    @property
    def reusable(self) -> bool:
        return not any(p.requires_grad for p in self.model.vision.parameters())

    @property
    def state_std(self) -> Tensor:
        return self.body.span / 4  # between the 1 % and 99 % quantiles lie about four deviations

    def trainable(self) -> Policy:
        return AdaptedPolicy(self, self.config.lora)

    def lora_targets(self) -> list[str]:
        parts = {"language_model.model": self.model.language_model.model, "projector": self.model.projector}
        return [f"model.{part}.{name}" for part, root in parts.items() for name, module in root.named_modules() if isinstance(module, nn.Linear)]

    def adopt(self, states: np.ndarray, actions: np.ndarray) -> None:
        if not self.actions.known:
            found = self.gripper_to_training(torch.from_numpy(actions)).numpy()
            mask = np.arange(found.shape[1]) < found.shape[1] - (self.config.gripper == "libero")
            for scaler, values, mapped in ((self.actions, found, mask), (self.body, states, np.ones(states.shape[1], bool))):
                columns = {name: np.asarray(column) for name, column in column_statistics(values).items()}
                scaler.take(columns["q01"], columns["q99"], mapped, columns["min"] == columns["max"])

    def stacks(self) -> list[Stack]:
        config, size = self.model.config, next(self.model.parameters()).element_size()
        language, patches = config.language, config.images * config.dino.grid**2
        words = self.config.max_tokens + config.chunk * config.action_size + 2
        pictures = [(tower, config.images * (tower.grid**2 + tower.registers)) for tower in (config.dino, config.siglip)]
        towers = [Stack(tower.depth, tokens, tower.width, tower.mlp, size, not self.reusable) for tower, tokens in pictures]
        return [*towers, Stack(language.depth, patches + words + (config.proprio_size is not None), language.width, language.mlp, size, True)]

    def encoded_size(self) -> int:
        config = self.model.config
        return config.images * config.dino.grid**2 * (config.dino.width + config.siglip.width) * next(self.model.parameters()).element_size()

    def look(self, frames: np.ndarray) -> list[Tensor]:
        """The vision towers' features, as (B, C, patches)."""
        return [self.model.vision_features(self._pixels([frames])).transpose(1, 2).float()]

    def _pixels(self, images: list[np.ndarray]) -> Tensor:
        return pixels(images, self.pictures).to(self.device, self.model.dtype)

    def encode(self, obs: Observation) -> dict[str, Tensor]:
        """Vision features (B, K P, D), or pixels while the towers learn; the prompt in a fixed length; proprioception (B, S) in its units."""
        seen = self._pixels([obs.images[camera] for camera in self.config.cameras])
        answer = self.model.config.chunk * self.model.config.action_size
        ids, mask = self.prompts.batch(obs.instruction, answer)
        missing = self.config.max_tokens + answer + 2 - ids.shape[1]
        if missing < 0:
            raise UserError(
                f"an instruction of {ids.shape[1] - answer - 2} tokens, expected {self.config.max_tokens} at most; raise policy.max_tokens"
            )
        encoded = {
            "input_ids": F.pad(ids, (0, missing), value=self.prompts.padding).to(self.device),
            "attention_mask": F.pad(mask, (0, missing), value=False).to(self.device),
            "state": torch.from_numpy(obs.state).to(self.device),
        }
        if not self.reusable:
            return encoded | {"pixels": seen}
        with torch.no_grad():
            return encoded | {"features": self.model.vision_features(seen)}

    def _context(self, encoded: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """(patch embeddings, embedding of proprioception or None)"""
        self.model.train(torch.is_grad_enabled())  # gradient checkpointing wants it; nothing else differs
        features = encoded["features"] if "features" in encoded else self.model.vision_features(encoded["pixels"])
        felt = None if self.proprio_projector is None else self.proprio_projector(self.body.normalise(encoded["state"]))[:, None]
        return self.model.project(features), felt

    def hidden(self, encoded: dict[str, Tensor]) -> Tensor:
        """(B, T·A, H)"""
        return self.model.action_hidden_states(*self._context(encoded), encoded["input_ids"], encoded["attention_mask"])

    def dependences(self) -> dict[str, float]:
        """The first action must depend on a later empty place: attention in both directions."""
        size = self.config.resolution
        blank = Observation(
            {c: np.zeros((1, size, size, 3), np.uint8) for c in self.config.cameras}, np.zeros((1, self.config.state_size), np.float32), ["wait"]
        )
        encoded = self.encode(blank)
        embeddings, mask, first = self.model.sequence(*self._context(encoded), encoded["input_ids"], encoded["attention_mask"])
        place = min(50, self.model.config.chunk * self.model.config.action_size)
        changed = embeddings.clone()
        changed[:, first + place] += embeddings.abs().mean()
        states = [self.model.language_model.model(inputs_embeds=e, attention_mask=visible(mask), use_cache=False)[0] for e in (embeddings, changed)]
        return {f"empty place {place} (in action 1)": (states[0] - states[1])[:, first].abs().max().item()}

    def gripper_to_training(self, actions: Tensor) -> Tensor:
        """(..., A) with +1 closing -> 1 open, 0 closed, as the published policies were trained."""
        if self.config.gripper == "as recorded":
            return actions
        return torch.cat([actions[..., :-1], (1 - actions[..., -1:].clamp(-1, 1)) / 2], -1)

    def to_environment(self, actions: Tensor) -> Tensor:
        """Normalised -> the environment's units; the gripper as a sign, as in the published evaluations."""
        found = self.actions.unnormalise(actions)
        return found if self.config.gripper == "as recorded" else torch.cat([found[..., :-1], (1 - 2 * found[..., -1:]).sign()], -1)

    def from_environment(self, actions: Tensor) -> Tensor:
        return self.actions.normalise(self.gripper_to_training(actions))


class OpenVLAPolicy(OpenVLAPart, RegressionPolicy):
    """The L1 head."""

    def __init__(self, config: VLAConfig, checkpoint: OpenVLACheckpoint, width: int = 256):
        super().__init__(config, checkpoint)
        self.action_head, self.model.action_head = self.model.action_head.model.float(), None
        inward = self.action_head.fc1.in_features
        self.scale_head = nn.Sequential(nn.LayerNorm(inward), nn.Linear(inward, width), nn.GELU(), nn.Linear(width, config.action_size))
        nn.init.zeros_(self.scale_head[-1].weight)  # begins between its bounds, whatever it is shown
        nn.init.zeros_(self.scale_head[-1].bias)
        self.heads = ("action_head", "scale_head") + (("proprio_projector",) if self.proprio_projector is not None else ())

    def features(self, encoded: dict[str, Tensor]) -> Tensor:
        """(B, T, A H) for the steps that are played, in float32."""
        return self.hidden(encoded).unflatten(1, (-1, self.config.action_size)).flatten(2)[:, : self.config.chunk].float()


class OpenVLATokenPolicy(OpenVLAPart):
    """Actions as 256 tokens of the language model."""

    density_is = "a softmax over action tokens"

    def __init__(self, config: VLAConfig, checkpoint: OpenVLACheckpoint):
        super().__init__(config, checkpoint)
        self.heads = ("proprio_projector",) if self.proprio_projector is not None else ()

    def logits(self, encoded: dict[str, Tensor]) -> Tensor:
        """(B, T, A, vocabulary) float32, for the steps that are played."""
        return self.model.logits(self.hidden(encoded)).unflatten(1, (-1, self.config.action_size))[:, : self.config.chunk].float()

    def density(self, encoded: dict[str, Tensor], trace: dict[str, Tensor]) -> TokenDensity:
        """With "scale" (B,) in the trace, that is the temperature."""
        temperature = trace["scale"][:, None, None, None] if "scale" in trace else self.config.temperature
        bins = F.linear(self.hidden(encoded), self.model.language_model.lm_head.weight[self.model.action_tokens.ids])
        return TokenDensity(bins.unflatten(1, (-1, self.config.action_size))[:, : self.config.chunk].float() / temperature)

    @torch.no_grad()
    def act(self, obs: Observation, *, explore: bool, scale: np.ndarray | None = None, generator: Generators = None) -> Act:
        """Without `explore` the likeliest token of the whole vocabulary, as published."""
        encoded, tokens = self.encode(obs), self.model.action_tokens
        trace = {} if scale is None else {"scale": torch.as_tensor(scale, dtype=torch.float32, device=self.device)}
        if explore:
            density = self.density(encoded, trace)
            sampled = density.sample(generator)
            log_prob = density.log_prob(sampled)
        else:
            sampled = (self.logits(encoded).argmax(-1) - tokens.ids.start).clamp(0, tokens.ids.stop - tokens.ids.start - 1)
            log_prob = torch.zeros(sampled.shape[:2])
        chunk = self.to_environment(tokens.decode(tokens.ids.start + sampled).float())
        return Act(chunk.cpu().numpy(), log_prob.cpu().numpy(), trace | {"sampled": sampled}, encoded)

    def sft_loss(self, encoded: dict[str, Tensor], actions: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy over the whole vocabulary, of steps that were really played."""
        wanted = self.model.action_tokens.encode(self.from_environment(actions))
        loss = F.cross_entropy(self.logits(encoded).movedim(-1, 1), wanted, reduction="none") * mask[..., None]
        return loss.sum() / (mask.sum() * wanted.shape[-1])
