"""A pinhole camera: where a point in the world falls in the picture.

The simulator draws its action maps through this, so real and imagined frames share one geometry.
"""

import numpy as np
from pydantic import Field

from ..config import Config


class CameraConfig(Config):
    """A free camera that looks at a point, as MuJoCo describes one: metres and degrees."""

    name: str = Field("front", description="Name of the camera in datasets")
    lookat: tuple[float, float, float] = Field((-0.02, 0.69, 0.11), description="Point that it looks at, in meters")
    distance: float = Field(1.0, gt=0, description="Distance from that point, in meters")
    azimuth: float = Field(150.0, description="Direction around the vertical axis, in degrees")
    elevation: float = Field(-38.0, description="Angle above the horizon, in degrees; negative looks down")
    fovy: float = Field(45.0, gt=0, lt=180, description="Vertical field of view, in degrees")

    def intrinsics(self, resolution: int) -> np.ndarray:
        """(3, 3) pinhole matrix in pixels of a square picture of `resolution` pixels a side."""
        focal = 0.5 * resolution / np.tan(np.deg2rad(self.fovy) / 2)
        centre = resolution / 2
        return np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1]], dtype=np.float64)

    def extrinsics(self) -> np.ndarray:
        """(4, 4) world -> camera, camera axes x right, y down, z forward (OpenCV), metres."""
        azimuth, elevation = np.deg2rad(self.azimuth), np.deg2rad(self.elevation)
        forward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
        right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
        down = np.cross(forward, right)
        rotation = np.stack([right, down, forward])
        matrix = np.eye(4)
        matrix[:3, :3] = rotation
        matrix[:3, 3] = -rotation @ (np.asarray(self.lookat) - self.distance * forward)
        return matrix
