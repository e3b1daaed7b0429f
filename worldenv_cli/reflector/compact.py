"""A compact reflector: instruction + frames so far -> probability of success after every frame.

Each frame is seen beside the episode's first one, modulated by the instruction; a recurrent cell carries what was seen, so that scoring the
next frame costs one frame, however long the episode. Calibration (a scale and an offset of the logit) and the threshold at which to stop are
part of the model: see `calibration.py`.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Config
from ..policies.text import TextConfig, TextEncoder

BLOCK = 4  # pixels a side that are folded into channels: see packing.py


class ReflectorConfig(Config):
    camera: str = "front"
    resolution: int = 64
    channels: tuple[int, int, int] = (48, 64, 96)
    width: int = 128
    text: TextConfig = TextConfig()


class Reflector(nn.Module):
    def __init__(self, config: ReflectorConfig):
        super().__init__()
        self.config = config
        self.text = TextEncoder(config.text)
        a, b, c = config.channels
        sizes = ((6 * BLOCK**2, a, 1), (a, b, 2), (b, c, 2))
        self.convolutions = nn.ModuleList([nn.Conv2d(inward, outward, 3, stride, padding=1) for inward, outward, stride in sizes])
        self.norms = nn.ModuleList([nn.GroupNorm(8, channels) for channels in config.channels])
        self.film = nn.ModuleList([nn.Linear(config.text.width, 2 * channels) for channels in config.channels])
        side = config.resolution // 16
        self.look = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(c * side * side, config.width), nn.GELU())
        self.cell = nn.GRU(config.width, config.width, batch_first=True)
        self.reflector_head = nn.Sequential(nn.Linear(2 * config.width, config.width), nn.GELU(), nn.Linear(config.width, 1))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))  # logit -> scale * logit + offset
        self.register_buffer("threshold", torch.tensor(0.5))  # of the calibrated probability

    def forward(self, frames: Tensor, first: Tensor, text: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Uncalibrated logits (B, T) and the cell's state (1, B, width).

        frames (B, T, 3, H, W) and first (B, 3, H, W) in [-1, 1]; text (B, width).
        """
        rows, length = frames.shape[:2]
        pairs = torch.cat([frames, first[:, None].expand_as(frames)], 2).flatten(0, 1)
        pairs = F.pixel_unshuffle(pairs, BLOCK).contiguous(memory_format=torch.channels_last)
        words = text.repeat_interleave(length, 0)
        for convolution, norm, film in zip(self.convolutions, self.norms, self.film):
            gain, shift = film(words)[:, :, None, None].chunk(2, 1)
            pairs = F.gelu(norm(convolution(pairs)) * (1 + gain) + shift)
        seen = self.look(pairs).unflatten(0, (rows, length))
        carried, hidden = self.cell(seen, hidden)
        return self.reflector_head(torch.cat([seen, carried], -1)).squeeze(-1), hidden

    def calibrated(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(self.calibration[0] * logits + self.calibration[1])

    @torch.no_grad()
    def start(self, first: np.ndarray, instructions: list[str]) -> "ReflectorState":
        """Begin B episodes by their first frames (B, H, W, 3) uint8."""
        return ReflectorState(_tensor(first[:, None])[:, 0], self.text(instructions), torch.zeros(1, len(first), self.config.width))

    @torch.no_grad()
    def score(self, state: "ReflectorState", frames: np.ndarray) -> tuple[np.ndarray, "ReflectorState"]:
        """The next frames (B, T, H, W, 3) uint8 -> calibrated P(success by each frame) (B, T) and the state after them."""
        logits, hidden = self(_tensor(frames), state.first, state.text, state.hidden)
        return self.calibrated(logits).numpy(), ReflectorState(state.first, state.text, hidden)

    def score_episodes(self, frames: list[np.ndarray], instructions: list[str], batch: int = 32) -> list[np.ndarray]:
        """Whole episodes: frames (N_i, H, W, 3) -> P(success by frame) (N_i,) for each."""
        self.eval()
        order = np.argsort([len(f) for f in frames])  # alike lengths waste little padding
        scores: dict[int, np.ndarray] = {}
        for begin in range(0, len(frames), batch):
            rows = order[begin : begin + batch]
            length = max(len(frames[row]) for row in rows)
            padded = np.stack([np.concatenate([frames[row], np.repeat(frames[row][-1:], length - len(frames[row]), 0)]) for row in rows])
            state = self.start(padded[:, 0], [instructions[row] for row in rows])
            values, _ = self.score(state, padded)
            scores |= {row: value[: len(frames[row])] for row, value in zip(rows, values)}
        return [scores[row] for row in range(len(frames))]


class ReflectorState:
    """What B episodes under the reflector's eye remember."""

    def __init__(self, first: Tensor, text: Tensor, hidden: Tensor):
        self.first, self.text, self.hidden = first, text, hidden  # (B, 3, H, W), (B, width), (1, B, width)

    def rows(self, index) -> "ReflectorState":
        return ReflectorState(self.first[index], self.text[index], self.hidden[:, index])


def _tensor(frames: np.ndarray) -> Tensor:
    """(B, T, H, W, 3) uint8 -> (B, T, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3))).float() / 127.5 - 1
