"""The world simulator as the rest of the toolkit sees it: start from a history, step by action chunks, get frames and proprioception."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..data.dataset import Episode
from ..packing import normalised, pack, quantised, unpack
from ..pretrained import Pretrained
from .bank import PoseBank
from .conditioning import ActionMaps
from .config import SimulatorConfig
from .proprioception import ProprioceptionModel
from .unet import Conditions, VideoUNet, context_frames, side_by_side


@dataclass
class History:
    """What really happened in one episode up to a moment; N = 1 is a fresh start."""

    frames: np.ndarray  # (N, H, W, 3) uint8
    states: np.ndarray  # (N, S) float32
    actions: np.ndarray  # (N - 1, A) float32
    instruction: str


def history_until(episode: Episode, camera: str, moment: int) -> History:
    """The first `moment` control steps of an episode; 0: its start."""
    return History(episode.frames[camera][: moment + 1], episode.states[: moment + 1], episode.actions[:moment], episode.instruction)


@dataclass
class SimulatorState:
    """What B imagined episodes remember. Frames are uint8, as a camera would give them, and packed (see `unet`)."""

    first: Tensor  # (B, h, w, P) uint8, the episode's first frame
    recent: Tensor  # (B, R, h, w, P) uint8, oldest first: as many as the longest memory needs, the first frame standing in for those before it
    state: Tensor  # (B, S) float32
    memory: Tensor  # (B, hidden + S) of the proprioception model
    scene: Tensor  # (B, 32) what it saw in the first frame
    unlike: Tensor  # (B, bank) how far the bank's scenes are from this one

    def rows(self, index) -> "SimulatorState":
        """The rows that go on; the others leave the batch."""
        return SimulatorState(self.first[index], self.recent[index], self.state[index], self.memory[index], self.scene[index], self.unlike[index])


class Simulator(Pretrained, nn.Module):
    kind = "simulator"

    def __init__(self, config: SimulatorConfig):
        super().__init__()
        self.config = config
        camera = np.array(config.intrinsics), np.array(config.extrinsics)
        self.maps = ActionMaps(*camera, config.resolution, config.unet.block, config.opening, config.table)
        self.unet = VideoUNet(config.unet, config.chunk, len(config.action_unit))
        self.proprioception = ProprioceptionModel(torch.tensor(config.action_unit), config.hidden, self.unet.picture)
        self.bank = PoseBank(config.bank, config.resolution, config.unet.block, torch.tensor(config.action_unit))
        self.reach = max(config.unet.memory) + 1

    @property
    def device(self) -> torch.device:
        return self.bank.states.device

    @torch.no_grad()
    def start(self, histories: list[History]) -> SimulatorState:
        """Begin B imagined episodes from logged moments or fresh starts, each history of its own length."""
        numbers = [np.maximum(np.arange(len(h.frames) - self.reach, len(h.frames)), 0) for h in histories]
        recent = pack(np.stack([h.frames[n] for h, n in zip(histories, numbers)]), self.config.unet.block).to(self.device)
        first = pack(np.stack([h.frames[0] for h in histories]), self.config.unet.block).to(self.device)
        scene = self.proprioception.look(normalised(first))
        state = torch.from_numpy(np.stack([h.states[-1] for h in histories])).to(self.device)
        return SimulatorState(first, recent, state, self._memory(histories, scene), scene, self.bank.scene_distance(first))

    def _memory(self, histories: list[History], scene: Tensor) -> Tensor:
        """What the proprioception model carries after each history, by following the logged states."""
        memory = self.proprioception.begin(torch.from_numpy(np.stack([h.states[0] for h in histories])).to(self.device))
        for t in range(max(len(h.actions) for h in histories)):
            rows = [row for row, h in enumerate(histories) if len(h.actions) > t]
            states = torch.from_numpy(np.stack([histories[row].states[t] for row in rows])).to(self.device)
            actions = torch.from_numpy(np.stack([histories[row].actions[t] for row in rows])).to(self.device)
            memory[rows] = self.proprioception.step(states, actions, memory[rows], scene[rows])[1]
        return memory

    @torch.no_grad()
    def step(self, state: SimulatorState, chunk: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, SimulatorState]:
        """Imagine a chunk (B, T, A), clipped to [-1, 1] as the environment clips it.

        Returns ({camera: frames (B, T, H, W, 3) uint8}, proprioception (B, T, S), the state after it).
        """
        actions = torch.from_numpy(np.asarray(chunk, np.float32)).to(self.device).clamp(-1, 1)
        states, memory = self.proprioception.roll(state.state, actions, state.memory, state.scene)
        given = self.conditions(state.recent, state.first, torch.cat([state.state[:, None], states], 1), state.unlike)
        made = quantised(self.unet.sample(given))
        recent = torch.cat([state.recent, made], 1)[:, -self.reach :]
        return (
            {self.config.camera: unpack(made, self.config.unet.block)},
            states.cpu().numpy(),
            SimulatorState(state.first, recent, states[:, -1], memory, state.scene, state.unlike),
        )

    def conditions(self, recent: Tensor, first: Tensor, states: Tensor, unlike: Tensor) -> Conditions:
        """recent (B, N, h, w, P) and first (B, h, w, P) packed uint8, states (B, T + 1, S) in their units, unlike (B, bank): see SimulatorState."""
        context = context_frames(recent, self.config.unet.memory)
        alike = self.bank.nearest(states[:, 1:], self.maps.pixels(states[:, 1:, :3]), unlike)
        body = self.proprioception
        return Conditions(side_by_side(context, first, alike, self.maps(states)), (states - body.mean) / body.std)

    @torch.no_grad()
    def replay(self, history: list[History], actions: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Open loop: imagine what the logged actions (N_i, A) lead to. For each row (frames (N_i + 1, H, W, 3), states (N_i + 1, S)).

        The frame that it starts from comes first. Rows leave the batch when their actions end; a last part of a chunk is played and cut.
        """
        camera, length = self.config.camera, self.config.chunk
        state, alive = self.start(history), np.arange(len(history))
        frames, states = [[h.frames[-1:]] for h in history], [[h.states[-1:]] for h in history]
        for first in range(0, max(map(len, actions)), length):
            going = np.array([len(actions[row]) > first for row in alive])
            state, alive = state.rows(torch.from_numpy(going)), alive[going]
            chunk = np.stack([_padded(actions[row][first : first + length], length) for row in alive])
            made, rolled, state = self.step(state, chunk)
            for k, row in enumerate(alive):
                frames[row].append(made[camera][k])
                states[row].append(rolled[k])
        return [(np.concatenate(f)[: len(a) + 1], np.concatenate(s)[: len(a) + 1]) for f, s, a in zip(frames, states, actions)]


def _padded(actions: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([actions, np.zeros((length - len(actions), actions.shape[1]), np.float32)])
