"""Policies that walk from noise to actions along a learned velocity (pi0, SmolVLA): acting, and the density of a walk with noise on the way.

Only what is played is explored: noise is added to the real action dimensions of the chunk's first `config.chunk` steps and scored there; padded
dimensions and later steps follow the flow. The prompt's keys and values are computed once for an observation and serve every step of the
walk, scoring it again, and the reference policy, as long as nothing in the vision-language part learns.
"""

import numpy as np
import torch
from torch import Tensor, nn

from .densities import FlowDensity, Generators, noise, sde_step
from .lerobot import LeRobotCheckpoint
from .lora import AdaptedPolicy
from .normaliser import Normaliser
from .observation import Observation
from .policy import Act, Policy, Stack
from .vla import VLAConfig


class FlowPolicy(Policy):
    """`model` gives prepare, prefix and velocity: see `smolvla.model`. `checkpoint` says how its inputs and outputs are normalised."""

    density_is = "the density of noise on the way from noise to actions"

    def __init__(self, config: VLAConfig, model: nn.Module, checkpoint: LeRobotCheckpoint, state: Normaliser, action: Normaliser):
        super().__init__()
        self.config, self.model, self.checkpoint = config, model, checkpoint
        self.state_normaliser, self.action_normaliser = state, action
        if config.walk == "learned":
            self.noise_head = NoiseHead(config)
        self.heads = ("noise_head",) if config.walk == "learned" else ()

    @property
    def reusable(self) -> bool:
        return not any(p.requires_grad for p in self.model.vlm.parameters())

    @property
    def state_std(self) -> Tensor:
        return self.state_normaliser.std

    def trainable(self) -> Policy:
        return AdaptedPolicy(self, self.config.lora)

    def adopt(self, states: np.ndarray, actions: np.ndarray) -> None:
        if not self.state_normaliser.known:
            self.state_normaliser.fit(states)
            self.action_normaliser.fit(actions)

    def lora_targets(self) -> list[str]:
        names = [name for name, module in self.model.expert.named_modules() if isinstance(module, nn.Linear)]
        return [f"model.expert.{name}" for name in names]

    def look(self, frames: np.ndarray) -> list[Tensor]:
        """The vision tower's tokens, as (B, C, tokens)."""
        images, _ = self.model.prepare([frames])
        return [self.model.image_features(images[:, 0]).transpose(1, 2).float()]

    def _prefix_tokens(self) -> int:
        return len(self.config.cameras) * self.model.image_tokens + self.checkpoint.tokenizer_settings.max_length + 1

    def stacks(self) -> list[Stack]:
        lengths, learns = (self._prefix_tokens(), self.checkpoint.chunk + 1), (not self.reusable, True)
        return [_stack(layers, length, learn) for layers, length, learn in zip(self.model.decoders, lengths, learns)]

    def encoded_size(self) -> int:
        """Keys and values of every layer."""
        layers = self.model.decoders[0]
        key = layers[0].self_attn.k_proj.weight
        return 2 * len(layers) * self._prefix_tokens() * key.shape[0] * key.element_size()

    # What is seen

    def encode(self, obs: Observation) -> dict[str, Tensor]:
        """The prompt's keys and values, or what they are made from while the vision-language part learns."""
        images, image_mask = self.model.prepare([obs.images[camera] for camera in self.config.cameras])
        tokens, token_mask = self.checkpoint.tokenise(obs.instruction, padding="max_length")
        state = self.state_normaliser.normalise(torch.from_numpy(obs.state).to(self.device))
        inputs = {
            "images": images.to(self.device),
            "image_mask": image_mask.to(self.device),
            "tokens": tokens.to(self.device),
            "token_mask": token_mask.to(self.device),
            "state": nn.functional.pad(state, (0, self.checkpoint.max_state - state.shape[-1])),
        }
        if not self.reusable:
            return inputs
        with torch.no_grad():
            return self.model.prefix(**inputs)

    def _prefix(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        return encoded if self.reusable else self.model.prefix(**encoded)

    # The walk

    @property
    def steps(self) -> int:
        return self.checkpoint.steps

    def played(self, x: Tensor) -> Tensor:
        """(B, predicted steps, padded dimensions) -> (B, T, A)"""
        return x[:, : self.config.chunk, : self.config.action_size]

    def first_noise(self, rows: int, generator: Generators) -> Tensor:
        """(B, predicted steps, padded dimensions)"""
        shape = torch.empty(rows, self.checkpoint.chunk, self.checkpoint.max_action, device=self.device)
        return noise(torch.randn, shape, generator)

    @torch.no_grad()
    def walk(self, encoded: dict[str, Tensor], generator: Generators, level: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(where it ends (B, predicted, D), trace). Without `level` (B,), how strong the noise on the way is, it follows the flow."""
        prefix = self._prefix(encoded)
        rows = len(next(iter(encoded.values())))
        x, dt = self.first_noise(rows, generator), 1 / self.steps
        if level is None:
            for k in range(self.steps):
                x = x - dt * self.model.velocity(prefix, x, self._time(k, rows))
            return x, {"sampled": self.played(x)}
        return self._learned_walk(prefix, x, level, generator) if self.config.walk == "learned" else self._sde_walk(prefix, x, level, generator)

    def _sde_walk(self, prefix: dict, x: Tensor, level: Tensor, generator: Generators) -> tuple[Tensor, dict[str, Tensor]]:
        """One random step of each row is a step of the SDE."""
        rows, dt = len(x), 1 / self.steps
        chosen = (noise(torch.rand, x[:, 0, 0], generator) * self.steps).long()
        drawn = noise(torch.randn, self.played(x), generator)
        at, sampled = torch.empty_like(x), torch.empty_like(drawn)
        for k in range(self.steps):
            time, here = self._time(k, rows), chosen == k
            velocity = self.model.velocity(prefix, x, time)
            mean, std = sde_step(self.played(x), self.played(velocity), time, dt, level)
            at[here], sampled[here] = x[here], (mean + std * drawn)[here]
            x = x - dt * velocity
            x[here, : self.config.chunk, : self.config.action_size] = sampled[here]
        return x, {"at": at, "step": chosen, "level": level, "sampled": sampled[:, None]}

    def _learned_walk(self, prefix: dict, x: Tensor, level: Tensor, generator: Generators) -> tuple[Tensor, dict[str, Tensor]]:
        """Every step is noisy. Level 1 is the noise head's word, others multiply it."""
        points, dt = [x], 1 / self.steps
        for k in range(self.steps):
            time = self._time(k, len(x))
            velocity = self.model.velocity(prefix, x, time)
            std = level[:, None, None] * self.noise_head(self.played(x), self.played(velocity), time)
            reached = self.played(x - dt * velocity) + std * noise(torch.randn, self.played(x), generator)
            x = x - dt * velocity
            x[:, : self.config.chunk, : self.config.action_size] = reached
            points.append(x)
        whole = torch.stack(points, 1)  # (B, steps + 1, predicted, D)
        return x, {"walk": whole, "level": level, "sampled": whole[:, :, : self.config.chunk, : self.config.action_size]}

    def _level(self, rows: int) -> Tensor:
        """(B,), the policy's own."""
        return torch.full((rows,), self.config.noise_level if self.config.walk == "sde" else 1.0, device=self.device)

    def _time(self, k: Tensor | int, rows: int) -> Tensor:
        return torch.full((rows,), 1 - k / self.steps, device=self.device) if isinstance(k, int) else 1 - k / self.steps

    # Scoring and learning

    def trace(self, encoded: dict[str, Tensor], generator: Generators = None) -> dict[str, Tensor]:
        rows = len(next(iter(encoded.values())))
        return self.walk(encoded, generator, self._level(rows))[1]

    def density(self, encoded: dict[str, Tensor], trace: dict[str, Tensor]) -> FlowDensity:
        prefix, level, dt = self._prefix(encoded), trace["level"], 1 / self.steps
        if "at" in trace:
            time = self._time(trace["step"], len(level))
            velocity = self.model.velocity(prefix, trace["at"], time)
            mean, std = sde_step(self.played(trace["at"]), self.played(velocity), time, dt, level)
            return FlowDensity(mean[:, None], std[:, None])
        first = torch.zeros_like(self.played(trace["walk"][:, 0]))
        means, stds = [first], [torch.ones_like(first)]
        for k in range(self.steps):
            x, time = trace["walk"][:, k], self._time(k, len(level))
            velocity = self.model.velocity(prefix, x, time)
            means.append(self.played(x - dt * velocity))
            stds.append(level[:, None, None] * self.noise_head(self.played(x), self.played(velocity), time))
        return FlowDensity(torch.stack(means, 1), torch.stack(stds, 1))

    @torch.no_grad()
    def act(self, obs: Observation, *, explore: bool, scale: np.ndarray | None = None, generator: Generators = None) -> Act:
        """The first noise is drawn either way: a flow policy is never quite without chance. `scale` is the noise level on the way."""
        encoded = self.encode(obs)
        level = self._level(len(obs.state)) if scale is None else torch.as_tensor(scale, dtype=torch.float32)
        end, trace = self.walk(encoded, generator, level.to(self.device) if explore else None)
        log_prob = self.density(encoded, trace).log_prob(trace["sampled"]) if explore else torch.zeros(len(end), self.config.chunk)
        return Act(self.action_normaliser.unnormalise(self.played(end)).cpu().numpy(), log_prob.cpu().numpy(), trace, encoded)

    def sft_loss(self, encoded: dict[str, Tensor], actions: Tensor, mask: Tensor) -> Tensor:
        """Flow matching: squared error of the velocity at a random point of the way, over steps that were played and real dimensions."""
        target = self.action_normaliser.normalise(actions)
        padding = (0, self.checkpoint.max_action - target.shape[-1], 0, self.checkpoint.chunk - target.shape[1])
        target = nn.functional.pad(target, padding)
        source = self.first_noise(len(target), None)
        time = torch.distributions.Beta(1.5, 1.0).sample((len(target),)).to(self.device) * 0.999 + 0.001
        x = time[:, None, None] * source + (1 - time[:, None, None]) * target
        velocity = self.model.velocity(self._prefix(encoded), x, time)
        error = self.played((velocity - (source - target)) ** 2) * mask[..., None]
        return error.sum() / (mask.sum() * self.config.action_size)


def _stack(layers: nn.ModuleList, tokens: int, learns: bool) -> Stack:
    gate = layers[0].mlp.gate_proj.weight  # (MLP, width)
    return Stack(len(layers), tokens, gate.shape[1], gate.shape[0], gate.element_size(), learns)


class NoiseHead(nn.Module):
    """How much noise a step of the walk gets, from where it stands and where it goes (ReinFlow), between two bounds."""

    def __init__(self, config: VLAConfig, width: int = 64):
        super().__init__()
        self.low, self.high = config.noise_bounds
        self.layers = nn.Sequential(nn.Linear(2 * config.action_size + 1, width), nn.GELU(), nn.Linear(width, config.action_size))

    def forward(self, x: Tensor, velocity: Tensor, time: Tensor) -> Tensor:
        """x and velocity (B, T, A), time (B,) -> std (B, T, A)"""
        time = time[:, None, None].expand(*x.shape[:2], 1)
        return self.low + (self.high - self.low) * torch.sigmoid(self.layers(torch.cat([x, velocity.float(), time], -1)))
