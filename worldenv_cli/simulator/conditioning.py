"""Where the arm will be, as pictures: predicted proprioception projected through the camera (World-Env: action maps; EVAC: trajectory maps).

A pixel-aligned condition puts the arm right within a few hundred training steps, where a vector of numbers does not.
"""

import numpy as np
import torch
from torch import Tensor, nn

MAP_CHANNELS = 3  # hand, hand weighted by gripper opening, the hand's foot point on the table


class ActionMaps(nn.Module):
    """Proprioception (B, N, S) -> maps (B, N, h, w, 3) in [0, 1]: a Gaussian marker at each point, `resolution // block` positions a side.

    A marker is three quarters of a position wide, so that where exactly it lies can be read off its neighbours.
    """

    def __init__(self, intrinsics: np.ndarray, extrinsics: np.ndarray, resolution: int, block: int, opening: tuple[float, ...], table: float):
        """`opening` (S,): weights whose sum over a state says how far the gripper is open, 0 to 1. `table`: its height in metres."""
        super().__init__()
        self.table = table
        self.register_buffer("opening", torch.tensor(opening, dtype=torch.float32), persistent=False)
        self.side, self.block = resolution // block, block
        projection = np.asarray(intrinsics) @ np.asarray(extrinsics)[:3]
        self.register_buffer("projection", torch.tensor(projection, dtype=torch.float32))  # (3, 4), pixels <- metres

    def pixels(self, points: Tensor) -> Tensor:
        """Points (..., 3) in metres -> (..., 2) pixel coordinates (x right, y down)."""
        homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], -1) @ self.projection.T
        return homogeneous[..., :2] / homogeneous[..., 2:].clamp_min(1e-3)

    def forward(self, states: Tensor) -> Tensor:
        hand, opening = states[..., :3], (states @ self.opening).clamp(0, 1)[..., None, None]
        foot = torch.cat([hand[..., :2], torch.full_like(hand[..., :1], self.table)], -1)
        marker = self._marker(self.pixels(hand))
        return torch.stack([marker, marker * opening, self._marker(self.pixels(foot))], -1)

    def _marker(self, centre: Tensor) -> Tensor:
        """(..., 2) -> (..., h, w), separable."""
        grid = torch.arange(self.side, device=centre.device) + 0.5
        column = torch.exp(-0.5 * ((grid - centre[..., :1] / self.block) / 0.75) ** 2)  # (..., w)
        row = torch.exp(-0.5 * ((grid - centre[..., 1:] / self.block) / 0.75) ** 2)  # (..., h)
        return row[..., :, None] * column[..., None, :]
