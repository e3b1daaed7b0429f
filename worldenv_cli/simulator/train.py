"""Training the simulator on demonstrations and exploration, failures included: without them, what RL imagines is worse than no RL (World-Env)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import Episode
from ..packing import normalised, pack, quantised
from ..training import TrainingConfig, one_thread, train
from .bank import PoseBank
from .conditioning import ActionMaps
from .config import SimulateConfig
from .simulator import Simulator
from .unet import Conditions, VideoUNet


class Windows:
    """The action chunks of some episodes, each with everything that the simulator may remember before it. A place is (episode, control step)."""

    def __init__(self, episodes: Sequence[Episode], camera: str, chunk: int, memory: tuple[int, ...], block: int):
        self.chunk, self.reach = chunk, max(memory) + 1
        self.episodes = [episode for episode in episodes if len(episode.actions) >= chunk]
        self.lengths = np.array([len(episode.states) for episode in self.episodes])
        self.begins = np.cumsum(self.lengths) - self.lengths  # where each episode lies among all frames
        self.all_frames = torch.cat([pack(episode.frames[camera], block) for episode in self.episodes])
        self.all_states = torch.from_numpy(np.concatenate([episode.states for episode in self.episodes]))
        self.places = np.array([(e, t) for e, episode in enumerate(self.episodes) for t in range(len(episode.actions) - chunk + 1)])

    def fill(self, bank: PoseBank, maps: ActionMaps, seed: int) -> None:
        """Put frames of these episodes into the simulator's bank."""
        first = self.all_frames[torch.from_numpy(np.repeat(self.begins, self.lengths))]
        places = maps.pixels(self.all_states[:, :3].to(bank.states.device)).cpu()
        bank.fill(self.all_frames, self.all_states, places, first, torch.Generator().manual_seed(seed))

    def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """(size, 2) places."""
        return self.places[rng.integers(0, len(self.places), size)]

    def recent(self, places: np.ndarray) -> Tensor:
        """The last frames before each chunk, (B, reach, h, w, P) packed uint8, the first one standing in for those before it."""
        return self.all_frames[self._numbers(places, np.arange(1 - self.reach, 1))]

    def first(self, places: np.ndarray) -> Tensor:
        """(B, h, w, P) packed uint8."""
        return self.all_frames[torch.from_numpy(self.begins[places[:, 0]])]

    def states(self, places: np.ndarray) -> Tensor:
        """(B, T + 1, S), the one before the chunk in front."""
        return self.all_states[self._numbers(places, np.arange(self.chunk + 1))]

    def target(self, places: np.ndarray) -> Tensor:
        """(B, T, h, w, P) packed uint8."""
        return self.all_frames[self._numbers(places, np.arange(1, self.chunk + 1))]

    def _numbers(self, places: np.ndarray, steps: np.ndarray) -> Tensor:
        """(B, len(steps)): which of all frames lie so many control steps after each place."""
        return torch.from_numpy(self.begins[places[:, :1]] + np.maximum(places[:, 1:] + steps, 0))


class Followed:
    """Some episodes that the simulator replays while it is being trained, a chunk with every training step, on the frames that it has made itself.

    Every depth of an imagined episode is trained so, and at no cost: the frames that a step predicts are the next step's past, where imagining
    them for the step alone would take a second pass for every chunk of depth. An episode that ends makes room for another one's beginning.
    `carried` is all that is remembered.
    """

    def __init__(self, windows: Windows, rows: int, rng: np.random.Generator):
        places = windows.draw(rng, rows)
        places[:, 1] -= places[:, 1] % windows.chunk  # on the way already, so that the rows do not all begin and end together
        self.windows, self.rows = windows, rows
        self.carried = {"places": torch.from_numpy(places), "recent": windows.recent(places)}

    @property
    def places(self) -> np.ndarray:
        return self.carried["places"].numpy()

    def advance(self, made: Tensor, rng: np.random.Generator) -> None:
        """made (rows, T, h, w, P) packed uint8: the chunks that follow."""
        windows, places, recent = self.windows, self.places, self.carried["recent"]
        recent.copy_(torch.cat([recent, made.cpu()], 1)[:, -windows.reach :])
        places[:, 1] += windows.chunk
        for row, (e, t) in enumerate(places):
            if t + windows.chunk > len(windows.episodes[e].actions):
                places[row] = rng.integers(len(windows.episodes)), 0
                recent[row] = windows.recent(places[row : row + 1])[0]


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
    video = VideoTraining(simulator, episodes, config, seed)
    described = {"seed": seed, "description": "video simulator"}
    train(simulator.unet, video.loss, config.video, **described, checkpoint=checkpoint, metrics=metrics, carried=video.followed.carried)


class VideoTraining:
    """What a step of training the video half is made of: chunks after real frames, and some after frames of the simulator's own."""

    def __init__(self, simulator: Simulator, episodes: Sequence[Episode], config: SimulateConfig, seed: int):
        self.simulator, self.config = simulator, config
        simulator.unet.to(memory_format=torch.channels_last)
        self.windows = Windows(episodes, simulator.config.camera, simulator.config.chunk, simulator.config.unet.memory, simulator.config.unet.block)
        self.windows.fill(simulator.bank, simulator.maps, seed)
        self.followed = Followed(self.windows, int(config.video.batch * config.own_frames), np.random.default_rng(seed))
        self.begin = config.video.steps // 3  # none of its own at first: what it makes must be worth learning from

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict]:
        windows, own = self.windows, self.followed.rows if step >= self.begin else 0
        places = windows.draw(rng, self.config.video.batch - own)
        recent = windows.recent(places)
        if own:
            places, recent = np.concatenate([self.followed.places, places]), torch.cat([self.followed.carried["recent"], recent])
        parts = (recent, windows.first(places), windows.states(places), windows.target(places))
        value, made = video_loss(self.simulator, *(part.to(self.simulator.device) for part in parts), self.config, own, rng)
        if own:
            self.followed.advance(made, rng)
        return value, {}


def video_loss(
    simulator: Simulator, recent: Tensor, first: Tensor, states: Tensor, target: Tensor, config: SimulateConfig, own: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """(motion-weighted error of one chunk, the chunk as made for the first `own` rows (own, T, h, w, P) packed uint8).

    recent (B, reach, h, w, P), first (B, h, w, P) and target (B, T, h, w, P) packed uint8, states (B, T + 1, S).
    """
    unet = simulator.unet
    given = simulator.conditions(recent, first, states, simulator.bank.scene_distance(first))
    target = normalised(target)
    context, beginning, *_ = given.pictures.split(unet.parts, -1)
    change = torch.maximum((target - context[:, None, ..., : unet.picture]).abs(), (target - beginning[:, None]).abs())
    weight = 1 + config.motion_weight * by_pixel(change)  # (B, T, h, w, block²)
    _add_noise(context, config.context_noise, rng)
    predicted = unet.training_prediction(target, given, rng)
    made = quantised(_as_sampled(unet, predicted[:own], given.rows(slice(own))))
    error = (predicted - target).abs() if unet.config.objective == "regression" else (predicted - target) ** 2 * 4
    return (weight * by_pixel(error)).mean() / weight.mean(), made


@torch.no_grad()
def _as_sampled(unet: VideoUNet, predicted: Tensor, given: Conditions) -> Tensor:
    """Frames as the simulator would make them: a regression's prediction is one; a flow's is not, it has seen the target."""
    if unet.config.objective == "regression" or not len(predicted):
        return predicted.float().clamp(-1, 1)
    return unet.sample(given)


def by_pixel(packed: Tensor) -> Tensor:
    """Packed (..., P) -> the mean over the colours of every pixel (..., block²)."""
    return packed.unflatten(-1, (3, -1)).mean(-2)


def _add_noise(context: Tensor, largest: float, rng: np.random.Generator) -> None:
    """In place, to context frames (B, h, w, M * P): every sample's is of a strength of its own."""
    level = torch.from_numpy(rng.random((len(context), 1, 1, 1)).astype(np.float32)).to(context.device) * largest
    context += level * torch.randn_like(context)
