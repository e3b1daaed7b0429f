"""A compact reflector: instruction + frames so far -> probability that the task has been achieved by every frame.

Each frame is seen beside the episode's first one and beside those a little before it (a hand that pushes and one that is stopped look the same
in one picture), modulated by the instruction. What has been achieved stays achieved: the logit of an episode is the largest of its frames' so
far. No recurrent state: one that was trained on a few frames of every episode goes astray when it is shown all of them. Calibration (a scale
and an offset of the logit) and the threshold at which to stop are part of the model: see `calibration.py`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..packing import normalised, pack
from ..policies.text import TextEncoder
from ..pretrained import Pretrained
from .config import BLOCK, ReflectorConfig


@dataclass
class ReflectorState:
    """What B episodes under the reflector's eye remember. Pictures are uint8 and packed."""

    first: Tensor  # (B, h, w, P)
    recent: Tensor  # (B, R, h, w, P), oldest first: as many as the longest lookback needs, the first frame standing in for those before it
    text: Tensor  # (B, width)
    best: Tensor  # (B,) largest logit so far

    def rows(self, index) -> "ReflectorState":
        return ReflectorState(self.first[index], self.recent[index], self.text[index], self.best[index])


class Reflector(Pretrained, nn.Module):
    kind = "reflector"

    def __init__(self, config: ReflectorConfig):
        super().__init__()
        self.config = config
        self.text = TextEncoder(config.text)
        a, b, c = config.channels
        seen = 3 * BLOCK**2 * (2 + len(config.lookback))
        self.convolutions = nn.ModuleList([nn.Conv2d(seen, a, 1), nn.Conv2d(a, b, 3, stride=2, padding=1), nn.Conv2d(b, c, 3, stride=2, padding=1)])
        self.norms = nn.ModuleList([nn.GroupNorm(8, channels) for channels in config.channels])
        self.film = nn.ModuleList([nn.Linear(config.text.width, 2 * channels) for channels in config.channels])
        side = config.resolution // 16
        self.reflector_head = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(c * side * side, config.width), nn.GELU(), nn.Linear(config.width, 1)
        )
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))  # logit -> scale * logit + offset
        self.register_buffer("threshold", torch.tensor(0.5))  # of the calibrated probability

    def forward(self, seen: Tensor, text: Tensor) -> Tensor:
        """Uncalibrated logits (N,) of N frames, each by itself.

        seen (N, h, w, (2 + lookback) * P) packed, in [-1, 1]: the episode's first frame, the frame, those before it; text (N, width).
        """
        x = seen.movedim(-1, 1)
        for convolution, norm, film in zip(self.convolutions, self.norms, self.film):
            gain, shift = film(text)[:, :, None, None].chunk(2, 1)
            x = F.gelu(torch.addcmul(shift, norm(convolution(x)), 1 + gain))
        return self.reflector_head(x).squeeze(-1)

    @property
    def device(self) -> torch.device:
        return self.threshold.device

    def calibrated(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(self.calibration[0] * logits + self.calibration[1])

    @torch.no_grad()
    def start(self, frames: list[np.ndarray], instructions: list[str]) -> ReflectorState:
        """Begin B episodes by what is known of them, frames (N_i, H, W, 3) uint8 each. They are seen, not judged."""
        reach = max(self.config.lookback, default=1)
        recent = np.stack([f[np.maximum(np.arange(len(f) - reach, len(f)), 0)] for f in frames])
        first = pack(np.stack([f[0] for f in frames]), BLOCK).to(self.device)
        best = torch.full((len(frames),), -torch.inf, device=self.device)
        return ReflectorState(first, pack(recent, BLOCK).to(self.device), self.text(instructions), best)

    @torch.no_grad()
    def score(self, state: ReflectorState, frames: np.ndarray) -> tuple[np.ndarray, ReflectorState]:
        """The next frames (B, T, H, W, 3) uint8 -> calibrated P(success by each frame) (B, T) and the state after them."""
        length, reach = frames.shape[1], state.recent.shape[1]
        timeline = torch.cat([state.recent, pack(frames, BLOCK).to(self.device)], 1)  # (B, R + T, h, w, P)
        before = [timeline[:, reach - back : reach - back + length] for back in (0, *self.config.lookback)]
        seen = torch.cat([state.first[:, None].expand_as(before[0]), *before], -1)  # (B, T, h, w, (2 + lookback) * P)
        logits = self(normalised(seen.flatten(0, 1)), state.text.repeat_interleave(length, 0)).unflatten(0, (-1, length))
        best = torch.cat([state.best[:, None], logits], 1).cummax(1).values[:, 1:]
        return self.calibrated(best).cpu().numpy(), ReflectorState(state.first, timeline[:, -reach:], state.text, best[:, -1])

    def score_episodes(self, frames: list[np.ndarray], instructions: list[str], batch: int = 32) -> list[np.ndarray]:
        """Whole episodes: frames (N_i, H, W, 3) -> P(success by frame) (N_i,) for each."""
        self.eval()
        order = np.argsort([len(f) for f in frames])  # alike lengths waste little padding
        scores: dict[int, np.ndarray] = {}
        for begin in range(0, len(frames), batch):
            rows = order[begin : begin + batch]
            length = max(len(frames[row]) for row in rows)
            padded = np.stack([np.concatenate([frames[row], np.repeat(frames[row][-1:], length - len(frames[row]), 0)]) for row in rows])
            state = self.start([frames[row][:1] for row in rows], [instructions[row] for row in rows])
            values, _ = self.score(state, padded)
            scores |= {row: value[: len(frames[row])] for row, value in zip(rows, values)}
        return [scores[row] for row in range(len(frames))]
