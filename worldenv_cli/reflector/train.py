"""Training the reflector on real frames *and* on the simulator's replays of the same actions with their real labels, then calibrating it.

The natural share of successes is kept: oversampling them makes imagined success look easy and leaves RL nothing to climb.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..data.dataset import Episode
from ..packing import normalised, pack, shifted
from ..progress import track
from ..simulator.simulator import Simulator, history_until
from ..training import train
from .calibration import Scored, choose_threshold, failures, failures_needed, fit_scale_and_offset
from .compact import Reflector
from .config import BLOCK, CalibrateConfig, CalibrationConfig


@dataclass
class LabelledFrames:
    """Frames with the truth about them."""

    frames: np.ndarray  # (N, H, W, 3) uint8
    success: np.ndarray  # (N,) bool
    instruction: str
    task: str


def real_sequences(episodes: Sequence[Episode], camera: str) -> list[LabelledFrames]:
    return [LabelledFrames(e.frames[camera], e.success, e.instruction, e.info["task"]) for e in episodes]


def imagined_sequences(simulator: Simulator, episodes: Sequence[Episode], batch: int = 64) -> list[LabelledFrames]:
    """The simulator's open-loop replays of the episodes' own actions, with the real labels: what the reflector will have to judge in RL."""
    camera, made = simulator.config.camera, {}
    simulator.eval()
    order = sorted(range(len(episodes)), key=lambda i: len(episodes[i].actions))
    with track("imagined replays", total=len(episodes), unit="episodes") as bar:
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            starts = [history_until(episodes[i], camera, 0) for i in rows]
            for i, (frames, _) in zip(rows, simulator.replay(starts, [episodes[i].actions for i in rows])):
                made[i] = LabelledFrames(frames, episodes[i].success, episodes[i].instruction, episodes[i].info["task"])
            bar.advance(len(rows))
    return [made[i] for i in range(len(episodes))]


def train_reflector(
    reflector: Reflector, sequences: Sequence[LabelledFrames], config: CalibrateConfig, *, seed: int, checkpoint=None, metrics=None
) -> None:
    """Frame-wise binary cross-entropy, in place."""
    reflector.to(memory_format=torch.channels_last).train()
    instructions = sorted({sequence.instruction for sequence in sequences})

    def loss(_, rng):
        return reflector_loss(reflector, sequences, instructions, config, rng), {}

    train(reflector, loss, config.training, seed=seed, description="reflector", checkpoint=checkpoint, metrics=metrics)
    reflector.eval()


def reflector_loss(reflector: Reflector, sequences, instructions: list[str], config: CalibrateConfig, rng: np.random.Generator):
    """Binary cross-entropy over some frames of many sequences: neighbouring frames tell little that is new, other episodes much."""
    chosen = [sequences[i] for i in rng.integers(0, len(sequences), config.training.batch)]
    moments = [sampled_moments(sequence, config.frames, rng) for sequence in chosen]
    pictures = np.stack([_seen(sequence.frames, times, reflector.config.lookback) for sequence, times in zip(chosen, moments)])
    labels = np.stack([sequence.success[times] for sequence, times in zip(chosen, moments)])
    words = [sequence.instruction for sequence in chosen]
    for row in np.flatnonzero(rng.random(len(chosen)) < config.swapped) if len(instructions) > 1 else []:
        words[row] = rng.choice([instruction for instruction in instructions if instruction != words[row]])
        labels[row] = False
    pictures = shifted(pictures, rng.integers(-config.shift, config.shift + 1, (len(chosen), 2)))
    packed = torch.cat(pack(pictures, BLOCK).flatten(0, 1).unbind(1), -1)  # (B * T, h, w, (2 + lookback) * P)
    logits = reflector(normalised(packed.to(reflector.device)), reflector.text(words).repeat_interleave(config.frames, 0))
    return F.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels).to(reflector.device).flatten().float())


def _seen(frames: np.ndarray, times: np.ndarray, lookback: tuple[int, ...]) -> np.ndarray:
    """(T, 2 + lookback, H, W, 3): for each moment the first frame, the frame, those before it, as the reflector will see them."""
    numbers = np.stack([np.zeros_like(times)] + [np.maximum(times - back, 0) for back in (0, *lookback)], 1)
    return frames[numbers]


def sampled_moments(sequence: LabelledFrames, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` frame numbers in order: half of the time spread over the whole sequence (the paper samples frames uniformly over the trajectory),
    half of the time consecutive ones, around the moment of success where there is one: there the label turns, and what turns it is small."""
    length = len(sequence.frames)
    if rng.random() < 0.5 or length <= count:
        return np.sort(rng.choice(length, count, replace=length < count))
    middle = int(np.argmax(sequence.success)) if sequence.success[-1] else int(rng.integers(length))
    first = np.clip(middle - rng.integers(1, count), 0, length - count)
    return np.arange(first, first + count)


def score_sequences(reflector: Reflector, sequences: Sequence[LabelledFrames]) -> list[Scored]:
    scores = reflector.score_episodes([s.frames for s in sequences], [s.instruction for s in sequences])
    return [Scored(s.task, score, s.success) for s, score in zip(sequences, scores)]


def calibrate(reflector: Reflector, real: Sequence[LabelledFrames], imagined: Sequence[LabelledFrames], config: CalibrationConfig) -> dict | None:
    """Set scale, offset and threshold from calibration episodes, real and imagined alike; the stricter of the two thresholds is used.

    Returns None, or where too few of them failed for a threshold {"failed", "needed", "false_termination"}: the reflector then never stops.

    An episode's last frame weighs as much as all the others together: it is the one that is rewarded, and most frames are long before success,
    where any reflector is right.
    """
    reflector.calibration.copy_(torch.tensor([1.0, 0.0]))
    both = score_sequences(reflector, list(real) + list(imagined))
    probabilities = np.concatenate([scored.scores[1:] for scored in both]).astype(np.float64)
    labels = np.concatenate([scored.success[1:] for scored in both])
    logits = np.log(probabilities.clip(1e-7)) - np.log((1 - probabilities).clip(1e-7))
    weights = np.concatenate([np.r_[np.full(len(s.scores) - 2, 1 / max(len(s.scores) - 2, 1)), 1.0] for s in both])
    reflector.calibration.copy_(torch.tensor(fit_scale_and_offset(logits, labels, weights)))
    thresholds = [choose_threshold(score_sequences(reflector, kind), config) for kind in (real, imagined)]
    reflector.threshold.fill_(max(thresholds))
    failed, needed = min(failures(real), failures(imagined)), failures_needed(config.false_termination)
    return {"failed": failed, "needed": needed, "false_termination": config.false_termination} if failed < needed else None
