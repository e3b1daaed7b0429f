"""Where a source's cameras stand, in this project's convention: pixels, and world -> camera with x right, y down, z forward (OpenCV)."""

from xml.etree import ElementTree

import numpy as np


def mujoco_camera(model: str, name: str, size: tuple[int, int], *, mirrored: bool) -> dict[str, list]:
    """{"intrinsics", "extrinsics"} of a camera of a MuJoCo model (its XML) that does not move, for pictures of `size` (H, W); {} for others.

    MuJoCo's cameras look along -z with y up; `fovy` is 45 degrees where it is not given. A mirrored picture has a negative focal length.
    """
    try:
        world = ElementTree.fromstring(model).find("worldbody")
    except ElementTree.ParseError:
        return {}
    camera = None if world is None else next((found for found in world.findall("camera") if found.get("name") == name), None)
    if camera is None or camera.get("pos") is None or camera.get("quat") is None:
        return {}
    position, quaternion = (np.array([float(number) for number in camera.get(key).split()]) for key in ("pos", "quat"))
    right, up, back = _rotation(quaternion).T
    height, width = size
    focal = float(height / 2 / np.tan(np.deg2rad(float(camera.get("fovy", 45))) / 2))
    matrix = [[-focal if mirrored else focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]
    return {"intrinsics": matrix, "extrinsics": _extrinsics(np.stack([right, -up, -back]), position)}


def from_camera_to_world(pose: list) -> list:
    """robosuite's extrinsics (camera -> world, axes as here) the other way round."""
    return np.linalg.inv(np.array(pose, dtype=float)).tolist()


def _extrinsics(rotation: np.ndarray, position: np.ndarray) -> list:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ position
    return matrix.tolist()


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    """(w, x, y, z) -> (3, 3)"""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
