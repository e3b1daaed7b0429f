"""Training the simulator on demonstrations and exploration, failures included: without them, what RL imagines is worse than no RL (World-Env)."""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..config import Config
from ..data.dataset import Episode
from ..packing import normalised, pack, quantised
from ..training import TrainingConfig, one_thread, train
from .bank import PoseBank
from .conditioning import ActionMaps
from .simulator import Simulator


class SimulateConfig(Config):
    proprioception: TrainingConfig = TrainingConfig(steps=300, batch=64, learning_rate=3e-3, weight_decay=0.0)
    video: TrainingConfig = TrainingConfig(steps=900, batch=32, learning_rate=1e-3, weight_decay=0.01, average=0.995)
    context_noise: float = Field(0.06, ge=0, description="largest noise on context frames, in [-1, 1] units: errors of its own look like it")
    own_frames: float = Field(0.5, ge=0, le=1, description="share of samples whose context the simulator has made itself (a two-chunk unroll)")
    motion_weight: float = Field(8.0, ge=0, description="extra weight of pixels that change, per unit of change")


class Windows:
    """Two consecutive chunks out of episodes, with everything that the simulator may remember before them."""

    def __init__(self, episodes: Sequence[Episode], camera: str, chunk: int, memory: tuple[int, ...], block: int):
        self.chunk, self.memory = chunk, memory
        self.episodes = [episode for episode in episodes if len(episode.actions) >= 2 * chunk]
        self.frames = [pack(episode.frames[camera], block) for episode in self.episodes]
        self.places = [(e, t) for e, episode in enumerate(self.episodes) for t in range(len(episode.actions) - 2 * chunk + 1)]

    def fill(self, bank: PoseBank, maps: ActionMaps, seed: int) -> None:
        """Put frames of these episodes into the simulator's bank."""
        states = torch.cat([torch.from_numpy(episode.states) for episode in self.episodes])
        first = torch.cat([frames[:1].expand_as(frames) for frames in self.frames])
        places = maps.pixels(states[:, :3].to(bank.states.device)).cpu()
        bank.fill(torch.cat(self.frames), states, places, first, torch.Generator().manual_seed(seed))

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
        """(packed frames (B, 1 + reach + 1 + 2T, h, w, P) uint8 with the first frame in front, states (B, 1 + 2T, S)).

        reach: the longest memory.
        """
        reach = max(self.memory)
        pictures, states = [], []
        for e, t in [self.places[place] for place in rng.integers(0, len(self.places), size)]:
            numbers = np.maximum(np.arange(t - reach, t + 2 * self.chunk + 1), 0)
            pictures.append(torch.cat([self.frames[e][:1], self.frames[e][numbers]]))
            states.append(torch.from_numpy(self.episodes[e].states[t : t + 2 * self.chunk + 1]))
        return torch.stack(pictures), torch.stack(states)


def train_simulator(simulator: Simulator, episodes: Sequence[Episode], config: SimulateConfig, *, seed: int, checkpoints=(None, None), metrics=None):
    """Both halves, in place: first proprioception, then video. A simulator that has never been trained takes its statistics from the episodes."""
    if not simulator.proprioception.mean.any():
        _set_statistics(simulator, episodes)
    train_proprioception(simulator, episodes, config.proprioception, seed=seed, checkpoint=checkpoints[0])
    train_video(simulator, episodes, config, seed=seed, checkpoint=checkpoints[1], metrics=metrics)


def _set_statistics(simulator: Simulator, episodes: Sequence[Episode]) -> None:
    states = np.concatenate([episode.states for episode in episodes])
    changes = np.concatenate([np.diff(episode.states, axis=0) for episode in episodes])
    model = simulator.proprioception
    spread = states.std(0)
    found = {"mean": states.mean(0), "std": spread.clip(1e-4), "step_std": changes.std(0).clip(1e-4)}
    found |= {"low": states.min(0) - 0.1 * spread, "high": states.max(0) + 0.1 * spread}
    for name, values in found.items():
        getattr(model, name).copy_(torch.from_numpy(values))


def train_proprioception(simulator: Simulator, episodes: Sequence[Episode], config: TrainingConfig, *, seed: int, checkpoint=None) -> None:
    length = max(len(episode.actions) for episode in episodes)
    camera = simulator.config.camera
    count, size = len(episodes), episodes[0].states.shape[1]
    states, actions = np.zeros((count, length + 1, size), np.float32), np.zeros((count, length, episodes[0].actions.shape[1]), np.float32)
    mask = np.zeros((count, length), np.float32)
    for e, episode in enumerate(episodes):
        steps = len(episode.actions)
        states[e, : steps + 1], actions[e, :steps], mask[e, :steps] = episode.states, episode.actions, 1
    first = normalised(pack(np.stack([episode.frames[camera][0] for episode in episodes]), simulator.config.unet.block))
    states, actions, mask, first = (value.to(simulator.device) for value in (*map(torch.from_numpy, (states, actions, mask)), first))

    def loss(_, rng):
        rows = rng.integers(0, count, config.batch)
        return simulator.proprioception.loss(states[rows], actions[rows], mask[rows], first[rows]), {}

    with one_thread():
        train(simulator.proprioception, loss, config, seed=seed, description="proprioception model", checkpoint=checkpoint)


def train_video(simulator: Simulator, episodes: Sequence[Episode], config: SimulateConfig, *, seed: int, checkpoint=None, metrics=None) -> None:
    windows = Windows(episodes, simulator.config.camera, simulator.config.chunk, simulator.config.unet.memory, simulator.config.unet.block)
    simulator.unet.to(memory_format=torch.channels_last)
    windows.fill(simulator.bank, simulator.maps, seed)

    def loss(step, rng):
        batch = (part.to(simulator.device) for part in windows.batch(rng, config.video.batch))
        return video_loss(simulator, *batch, config, own_frames(step, config), rng), {}

    train(simulator.unet, loss, config.video, seed=seed, description="video simulator", checkpoint=checkpoint, metrics=metrics)


def own_frames(step: int, config: SimulateConfig) -> float:
    """Share of a step's samples whose context the simulator makes itself: none at first, what it makes must be worth learning from."""
    return config.own_frames if step > config.video.steps // 3 else 0.0


def video_loss(
    simulator: Simulator,
    frames: Tensor,
    states: Tensor,
    config: SimulateConfig,
    share: float,
    rng: np.random.Generator,
) -> Tensor:
    """Motion-weighted error of one chunk, for a `share` of the samples after a chunk that the simulator has made itself.

    frames (B, 1 + reach + 1 + 2T, h, w, P) packed uint8, states (B, 1 + 2T, S): see Windows.batch.
    """
    chunk, unet = simulator.config.chunk, simulator.unet
    first, frames = frames[:, 0], frames[:, 1:]
    reach = frames.shape[1] - 2 * chunk
    own = torch.from_numpy(rng.random(len(frames)) < share).to(frames.device)
    unlike = simulator.bank.scene_distance(first)
    given = simulator.conditions(frames[:, :reach], first, states[:, : chunk + 1], unlike)
    target = normalised(frames[:, reach : reach + chunk])
    if own.any():
        with torch.no_grad():
            before = given.rows(own)
            _add_noise(before.pictures.split(unet.parts, -1)[0], config.context_noise, rng)
            made = quantised(unet.sample(before))
        after = simulator.conditions(torch.cat([frames[own, :reach], made], 1), first[own], states[own, chunk:], unlike[own])
        target[own] = normalised(frames[own, reach + chunk :])
        given.pictures[own], given.states[own] = after.pictures, after.states
    context, beginning, *_ = given.pictures.split(unet.parts, -1)
    change = torch.maximum((target - context[:, None, ..., : unet.picture]).abs(), (target - beginning[:, None]).abs())
    weight = 1 + config.motion_weight * by_pixel(change)  # (B, T, h, w, block²)
    _add_noise(context, config.context_noise, rng)
    predicted = unet.training_prediction(target, given, rng)
    error = (predicted - target).abs() if simulator.config.unet.objective == "regression" else (predicted - target) ** 2 * 4
    return (weight * by_pixel(error)).mean() / weight.mean()


def by_pixel(packed: Tensor) -> Tensor:
    """Packed (..., P) -> the mean over the colours of every pixel (..., block²)."""
    return packed.unflatten(-1, (3, -1)).mean(-2)


def _add_noise(context: Tensor, largest: float, rng: np.random.Generator) -> None:
    """In place, to context frames (B, h, w, M * P): every sample's is of a strength of its own."""
    level = torch.from_numpy(rng.random((len(context), 1, 1, 1)).astype(np.float32)).to(context.device) * largest
    context += level * torch.randn_like(context)
