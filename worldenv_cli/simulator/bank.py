"""A bank of real pictures by pose: what the arm looked like when the hand was nearest to where it will be.

How a seven-joint arm bends is hard to learn from half an hour of pictures and easy to look up. For every frame to be made, the bank gives the
real frame whose proprioception is nearest; the network copies the arm from it and paints the rest. World-Env keeps a sparse memory of the
episode's own past; this is the same idea over all training episodes.
"""

import torch
from torch import Tensor, nn

OTHER_SCALE = 0.03  # metres that a unit of a state number without a position (the gripper's opening) is worth
EMPTY = 1e6  # the state of an empty place, which is never the nearest


class PoseBank(nn.Module):
    """`size` packed frames (P, h, w) uint8 with their states; saved with the simulator."""

    def __init__(self, size: int, picture: int, side: int, action_unit: Tensor):
        super().__init__()
        self.register_buffer("frames", torch.zeros(size, picture, side, side, dtype=torch.uint8))
        self.register_buffer("states", torch.full((size, len(action_unit)), EMPTY))
        self.register_buffer("episodes", torch.full((size,), -1, dtype=torch.int64))
        moves = action_unit.abs().sum(1) > 0
        self.register_buffer("scale", torch.where(moves, 1.0, OTHER_SCALE))

    def fill(self, frames: Tensor, states: Tensor, episodes: Tensor, generator: torch.Generator) -> None:
        """Keep as many of these frames (N, P, h, w), states (N, S) and episode numbers (N,) as there is room for, drawn at random.

        What was there before goes.
        """
        self.states.fill_(EMPTY)
        chosen = torch.randperm(len(frames), generator=generator)[: len(self.frames)]
        for buffer, values in ((self.frames, frames), (self.states, states), (self.episodes, episodes)):
            buffer[: len(chosen)] = values[chosen]

    def nearest(self, states: Tensor, exclude: Tensor | None = None) -> Tensor:
        """States (B, T, S) in their units -> packed frames (B, T, P, h, w) uint8; `exclude` (B,) are episodes not to look in."""
        rows, length = states.shape[:2]
        distance = torch.cdist((states * self.scale).flatten(0, 1), self.states * self.scale)  # (B T, size)
        if exclude is not None:
            own = self.episodes[None] == exclude.repeat_interleave(length)[:, None]
            distance = distance.masked_fill(own, float("inf"))
        return self.frames[distance.argmin(1)].unflatten(0, (rows, length))
