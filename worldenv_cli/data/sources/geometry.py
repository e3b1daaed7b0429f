"""Where a source's cameras stand, in this project's convention: pixels, and world -> camera with x right, y down, z forward (OpenCV)."""

from xml.etree import ElementTree

import numpy as np

from ...errors import UserError


def mujoco_camera(model: str, name: str, size: tuple[int, int], where: str = "the model", *, mirrored: bool) -> dict[str, list]:
    """{"intrinsics", "extrinsics"} of a camera of a MuJoCo model (its XML) that does not move, for pictures of `size` (H, W); {} for others.

    MuJoCo's cameras look along -z with y up; `fovy` is 45 degrees where it is not given. A mirrored picture has a negative focal length.
    Raises UserError where the camera's own numbers are none.
    """
    try:
        world = ElementTree.fromstring(model).find("worldbody")
    except ElementTree.ParseError:
        return {}
    camera = None if world is None else next((found for found in world.findall("camera") if found.get("name") == name), None)
    if camera is None or camera.get("pos") is None or camera.get("quat") is None:
        return {}
    position, quaternion = _numbers(camera, "pos", 3, where), _numbers(camera, "quat", 4, where)
    angle = _numbers(camera, "fovy", 1, where)[0] if camera.get("fovy") is not None else 45.0
    if not quaternion.any() or not 0 < angle < 180:
        raise UserError(
            f"{where}, camera {name}: quat {quaternion.tolist()} and fovy {angle:g}, expected a rotation and 0 to 180 degrees; correct them"
        )
    right, up, back = _rotation(quaternion).T
    height, width = size
    focal = float(height / 2 / np.tan(np.deg2rad(angle) / 2))
    matrix = [[-focal if mirrored else focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]
    return {"intrinsics": matrix, "extrinsics": _extrinsics(np.stack([right, -up, -back]), position)}


def _numbers(camera: ElementTree.Element, key: str, count: int, where: str) -> np.ndarray:
    """(count,) of an attribute."""
    try:
        numbers = np.array([float(number) for number in camera.get(key, "").split()])
    except ValueError:
        numbers = np.zeros(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise UserError(f"{where}, camera {camera.get('name')}: {key} is {camera.get(key)!r:.60}, expected {count} numbers; correct it")
    return numbers


def robosuite_camera(found, where: str) -> dict[str, list]:
    """robomimic's `camera_info` of one camera in the same form; its extrinsics are camera -> world, axes as here."""
    matrices: dict[str, np.ndarray] = {}
    found = found if isinstance(found, dict) else {}
    for key, size in (("intrinsics", 3), ("extrinsics", 4)):
        try:
            matrix = np.array(found[key], dtype=float)
        except (KeyError, TypeError, ValueError):
            matrix = np.zeros(0)
        if matrix.shape != (size, size) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
            raise UserError(
                f"{where}, {key}: {found.get(key)!r:.60}, expected an invertible {size} x {size} matrix; correct camera_info or remove it"
            )
        matrices[key] = matrix
    return {"intrinsics": matrices["intrinsics"].tolist(), "extrinsics": np.linalg.inv(matrices["extrinsics"]).tolist()}


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
