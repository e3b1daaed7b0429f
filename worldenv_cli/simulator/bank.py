"""A bank of real pictures by pose: what the arm looked like when the hand was nearest to where it will be.

How a seven-joint arm bends is hard to learn from half an hour of pictures and easy to look up. For every frame to be made, the bank gives two
real ones: that with the nearest proprioception, whose arm is the likest, and that with the nearest proprioception among the scenes that began
alike, whose objects are the likest. Each is shifted by whole pixels so that its hand lies where the hand will be. The network copies from them
and paints the rest. Frames of the very episode that is imagined are never given: in training they would be the answer, and a reflector that
learns from replays of training episodes would learn from replays that are too good.

World-Env keeps a sparse memory of the episode's own past; this is the same idea over all training episodes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ALIKE = 2  # frames for each frame to be made: alike in pose; alike in pose and scene
OTHER_SCALE = 0.03  # metres that a unit of a state number without a position (the gripper's opening) is worth
SCENE_SCALE = 0.02  # metres that a unit of distance between two first frames is worth (scenes of two tasks are about 4 apart)
SAME_SCENE = 0.05  # two episodes' first frames are farther apart than this; one episode's are not
EMPTY = 1e6  # the state of an empty place, which is never the nearest


class PoseBank(nn.Module):
    """`size` pictures (3, H, W) uint8 with their states, the pixels at which their hands lie, and their scenes; saved with the simulator."""

    def __init__(self, size: int, resolution: int, block: int, action_unit: Tensor):
        super().__init__()
        self.block = block
        self.register_buffer("frames", torch.zeros(size, 3, resolution, resolution, dtype=torch.uint8))
        self.register_buffer("states", torch.full((size, len(action_unit)), EMPTY))
        self.register_buffer("places", torch.zeros(size, 2))
        self.register_buffer("scenes", torch.zeros(size, 3 * (resolution // block) ** 2, dtype=torch.uint8))
        moves = action_unit.abs().sum(1) > 0
        self.register_buffer("scale", torch.where(moves, 1.0, OTHER_SCALE))

    def fill(self, frames: Tensor, states: Tensor, places: Tensor, first: Tensor, generator: torch.Generator) -> None:
        """Keep as many of N packed frames (N, P, h, w) as there is room for, drawn at random; what was there before goes.

        states (N, S), places (N, 2) the hand's pixels, first (N, P, h, w) packed: how each frame's episode began.
        """
        self.states.fill_(EMPTY)
        chosen = torch.randperm(len(frames), generator=generator)[: len(self.frames)]
        pictures, scenes = F.pixel_shuffle(frames[chosen], self.block), self._scene(first[chosen])
        found = {"frames": pictures, "states": states[chosen], "places": places[chosen], "scenes": scenes}
        for name, values in found.items():
            getattr(self, name)[: len(chosen)] = values

    def nearest(self, states: Tensor, places: Tensor, first: Tensor) -> Tensor:
        """Packed frames (B, T, ALIKE, P, h, w) uint8 for states (B, T, S) in their units, whose hands lie at the pixels `places` (B, T, 2).

        first (B, P, h, w) packed uint8: how the episodes began.
        """
        rows, length = states.shape[:2]
        distance = torch.cdist((states * self.scale).flatten(0, 1), self.states * self.scale).unflatten(0, (rows, length))  # (B, T, size)
        unlike = torch.cdist(self._scene(first).float() / 255, self.scenes.float() / 255)[:, None]  # (B, 1, size)
        distance = distance.masked_fill(unlike < SAME_SCENE, float("inf"))
        found = torch.stack([distance.argmin(2), (distance + SCENE_SCALE * unlike).argmin(2)], 2)  # (B, T, ALIKE)
        return F.pixel_unshuffle(self._shifted(found, places[:, :, None]), self.block)

    def _scene(self, first: Tensor) -> Tensor:
        """Packed first frames (B, P, h, w) -> their mean colours, block by block (B, 3 h w) uint8."""
        return first.unflatten(1, (3, -1)).float().mean(2).flatten(1).round().to(torch.uint8)

    def _shifted(self, found: Tensor, places: Tensor) -> Tensor:
        """The pictures (..., 3, H, W) of these numbers (...), moved by whole pixels so that their hands lie at `places`; edges are repeated."""
        side = self.frames.shape[-1]
        offset = (places - self.places[found]).round().long().clamp(-side // 8, side // 8)
        grid = torch.arange(side, device=found.device)
        columns, rows = ((grid - offset[..., axis, None]).clamp(0, side - 1) for axis in (0, 1))
        return self.frames[found[..., None, None], :, rows[..., :, None], columns[..., None, :]].movedim(-1, -3)
