"""Actions -> proprioception, recurrently: the controller behind the arm has a state of its own that no picture shows.

A position controller adds every action to a target and lets the arm chase it. The target is therefore carried along explicitly (what one unit
of action adds to it is a fact of the dataset), and a recurrent cell learns how the arm follows: lag, workspace bounds, contact. Trained
open-loop over whole episodes, which halves the drift of a model trained step by step. The first frame tells it what the hand may run into.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCENE = 32  # numbers that sum up the first frame


class ProprioceptionModel(nn.Module):
    """Rolls (state, action) forward; normalisation statistics are buffers and saved with it.

    `action_unit` (S, A): what one unit of action adds to the controller's target for each number of the state.
    """

    def __init__(self, action_unit: Tensor, hidden: int, picture: int):
        super().__init__()
        state_size, action_size = action_unit.shape
        self.register_buffer("action_unit", action_unit)
        self.register_buffer("mean", torch.zeros(state_size))
        self.register_buffer("std", torch.ones(state_size))
        self.register_buffer("low", torch.full((state_size,), -1e3))  # the target stays within what was ever seen
        self.register_buffer("high", torch.full((state_size,), 1e3))
        self.register_buffer("step_std", torch.ones(state_size))  # spread of one control step's change
        self.scene = nn.Sequential(
            nn.Conv2d(picture, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.GELU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, SCENE),
        )  # fmt: skip
        self.cell = nn.GRUCell(2 * state_size + action_size + SCENE, hidden)
        self.change = nn.Sequential(nn.Linear(hidden + 2 * state_size, hidden), nn.GELU(), nn.Linear(hidden, state_size))

    def look(self, first_frame: Tensor) -> Tensor:
        """first_frame packed (B, h, w, P) in [-1, 1] -> scene (B, SCENE)."""
        return self.scene(first_frame.movedim(-1, 1))

    def begin(self, state: Tensor) -> Tensor:
        """The controller at rest at state (B, S): memory (B, hidden + S), the cell's state and the target."""
        return torch.cat([state.new_zeros(len(state), self.cell.hidden_size), state], -1)

    def step(self, state: Tensor, action: Tensor, memory: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        """One control step: (next state (B, S) in its units, memory)."""
        hidden, target = memory.split([self.cell.hidden_size, state.shape[-1]], -1)
        target = torch.minimum(torch.maximum(target + action @ self.action_unit.T, self.low), self.high)
        ahead = (target - state) / self.step_std
        hidden = self.cell(torch.cat([(state - self.mean) / self.std, ahead, action, scene], -1), hidden)
        change = self.change(torch.cat([hidden, ahead, (state - self.mean) / self.std], -1))
        return state + self.step_std * change, torch.cat([hidden, target], -1)

    def roll(self, state: Tensor, actions: Tensor, memory: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        """Open loop over actions (B, T, A): (states (B, T, S), memory)."""
        states = []
        for t in range(actions.shape[1]):
            state, memory = self.step(state, actions[:, t], memory, scene)
            states.append(state)
        return torch.stack(states, 1), memory

    def loss(self, states: Tensor, actions: Tensor, mask: Tensor, first_frame: Tensor) -> Tensor:
        """Huber loss of the open-loop roll from the first state, in spreads of one step. mask (B, T): real steps."""
        rolled, _ = self.roll(states[:, 0], actions, self.begin(states[:, 0]), self.look(first_frame))
        error = F.smooth_l1_loss(rolled / self.step_std, states[:, 1:] / self.step_std, reduction="none").mean(-1)
        return (error * mask).sum() / mask.sum()
