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

from ..packing import fold, unfold

ALIKE = 2  # frames for each frame to be made: alike in pose; alike in pose and scene
OTHER_SCALE = 0.03  # metres that a unit of a state number without a position (the gripper's opening) is worth
SCENE_SCALE = 0.02  # metres that a unit of distance between two first frames is worth (scenes of two tasks are about 4 apart)
SAME_SCENE = 0.05  # two episodes' first frames are farther apart than this; one episode's are not
EMPTY = 1e6  # the state of an empty place, which is never the nearest


class PoseBank(nn.Module):
    """`size` pictures uint8 with their states, the pixels at which their hands lie, and their scenes; saved with the simulator.

    They are kept with an eighth of a picture around them, their edges repeated, so that a shifted picture is a slice of what is kept.
    """

    def __init__(self, size: int, resolution: int, block: int, action_unit: Tensor):
        super().__init__()
        self.block, self.side, self.margin = block, resolution, resolution // 8
        wide = resolution + 2 * self.margin
        self.register_buffer("frames", torch.zeros(size, 3, wide, wide, dtype=torch.uint8))
        self.register_buffer("states", torch.full((size, len(action_unit)), EMPTY))
        self.register_buffer("places", torch.zeros(size, 2))
        self.register_buffer("scenes", torch.zeros(size, 3 * (resolution // block) ** 2))
        moves = action_unit.abs().sum(1) > 0
        self.register_buffer("scale", torch.where(moves, 1.0, OTHER_SCALE))

    def fill(self, frames: Tensor, states: Tensor, places: Tensor, first: Tensor, generator: torch.Generator) -> None:
        """Keep as many of N packed frames (N, h, w, P) as there is room for, drawn at random; what was there before goes.

        states (N, S), places (N, 2) the hand's pixels, first (N, h, w, P) packed: how each frame's episode began.
        """
        self.states.fill_(EMPTY)
        chosen = torch.randperm(len(frames), generator=generator)[: len(self.frames)]
        edges = torch.arange(-self.margin, self.side + self.margin).clamp(0, self.side - 1)
        pictures = unfold(frames[chosen], self.block)[:, :, edges][..., edges]
        found = {"frames": pictures, "states": states[chosen], "places": places[chosen], "scenes": scene(first[chosen])}
        for name, values in found.items():
            getattr(self, name)[: len(chosen)] = values

    def scene_distance(self, first: Tensor) -> Tensor:
        """How unlike the beginnings of episodes, first (B, h, w, P) packed uint8, are to those of all frames: (B, size) in metres, as differences in
        pose are. Infinite where they are the same."""
        unlike = torch.cdist(scene(first), self.scenes)
        return (SCENE_SCALE * unlike).masked_fill(unlike < SAME_SCENE, float("inf"))

    def nearest(self, states: Tensor, places: Tensor, in_scene: Tensor) -> Tensor:
        """Packed frames (B, T, ALIKE, h, w, P) uint8 for states (B, T, S) in their units, whose hands lie at the pixels `places` (B, T, 2).

        in_scene (B, size): see `scene_distance`.
        """
        in_pose = torch.cdist((states * self.scale).flatten(0, 1), self.states * self.scale).unflatten(0, states.shape[:2])  # (B, T, size)
        in_pose = in_pose.masked_fill(in_scene.isinf()[:, None], float("inf"))
        found = torch.stack([in_pose.argmin(2), (in_pose + in_scene[:, None]).argmin(2)], 2)  # (B, T, ALIKE)
        return fold(self._shifted(found, places[:, :, None]), self.block)

    def _shifted(self, found: Tensor, places: Tensor) -> Tensor:
        """The pictures (..., 3, H, W) of these numbers (...), moved by whole pixels so that their hands lie at `places`; edges are repeated."""
        offset = (places - self.places[found]).round().long().clamp(-self.margin, self.margin)
        corners = (self.margin - offset).flatten(0, -2).tolist()
        moved = [self.frames[n, :, y : y + self.side, x : x + self.side] for n, (x, y) in zip(found.flatten().tolist(), corners)]
        return torch.stack(moved).unflatten(0, found.shape)


def scene(first: Tensor) -> Tensor:
    """Packed first frames (B, h, w, P) uint8 -> their mean colours in [0, 1], block by block (B, 3 h w)."""
    return first.unflatten(-1, (3, -1)).float().mean(-1).flatten(1) / 255
