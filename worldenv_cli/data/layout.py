"""What an episode is, in memory and on disk.

A world model needs the picture after the last action, which LeRobot's "a row is an observation and its action" has no place for. On disk
it gets a row of its own at the end of each episode, the closing row: see CLOSING_ROW.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import UserError

CODEBASE_VERSION = "v3.0"
INFO = "meta/info.json"
STATISTICS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DESCRIPTION = "meta/worldenv.json"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FILES_IN_CHUNK = 1000
UNKNOWN = "unknown"  # an outcome that nobody recorded or told
CAMERA = "observation.images."
INDICES = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}
CLOSING_ROW = (
    "The last row of every episode holds the observation after the last action. Its own action {action}, and what it led to was not seen; "
    "its next.success repeats the row before. next.done is true on the last real action's row and on the closing row. "
    "meta/stats.json counts it like any other row."
)
HELD = "is all zeros (hold still) and was never carried out"  # of episodes without an action of their own there


@dataclass
class Episode:
    """T actions and the T + 1 observations around them."""

    frames: dict[str, np.ndarray]  # camera -> (T+1, H, W, 3) uint8, frame t is seen before action t, the last one after the last action
    states: np.ndarray  # (T+1, S) float32
    actions: np.ndarray  # (T, A) float32, in [-1, 1]
    success: np.ndarray  # (T+1,) bool: has the task been achieved by frame t; starts False, never falls back
    instruction: str
    info: dict  # plain JSON facts: task name, start seed, source ("expert", "policy"), exploration noise, environment steps ...
    last_action: np.ndarray | None = None  # (A,) float32: the command recorded with the last frame, whose result was not; None where there is none

    @property
    def outcome(self) -> Literal["success", "failure", "unknown"]:
        """Where it is unknown `success` is all False and means nothing."""
        if self.info.get("outcome") == UNKNOWN:
            return UNKNOWN
        return "success" if self.success[-1] else "failure"


def make_features(where: str, episode: Episode, state_names: list[str], action_names: list[str]) -> dict[str, dict]:
    """The "features" of info.json, in the order of the columns; this episode's pictures set the shapes that all others must have."""
    features = {}
    for camera, frames in episode.frames.items():
        if "/" in camera or frames.ndim != 4 or frames.shape[3] != 3:
            raise UserError(
                f"{where}, camera {camera!r}: pictures {frames.shape}, expected (T+1, H, W, 3) and no / in the name; rename it: --cameras"
            )
        features[CAMERA + camera] = {"dtype": "image", "shape": list(frames.shape[1:]), "names": ["height", "width", "channel"]}
    features["observation.state"] = {"dtype": "float32", "shape": [len(state_names)], "names": state_names}
    features["action"] = {"dtype": "float32", "shape": [len(action_names)], "names": action_names}
    scalars = {"next.success": "bool", "next.done": "bool", **INDICES}
    return features | {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in scalars.items()}


def check_episode(where: str, episode: Episode, features: dict[str, dict]) -> None:
    """Refuse what would be found out much later, in the middle of a training."""
    steps = len(episode.actions)
    if steps == 0:
        raise UserError(f"{where}: no actions, expected one at least; leave the episode out")
    found = {CAMERA + camera: frames for camera, frames in episode.frames.items()}
    cameras = {name for name, feature in features.items() if feature["dtype"] in ("image", "video")}
    if set(found) != cameras:
        raise UserError(f"{where}: cameras {sorted(found)}, expected {sorted(cameras)} as in the first episode; choose those of all: --cameras")
    found |= {"observation.state": episode.states, "action": episode.actions, "success": episode.success}
    for name, values in found.items():
        shape = (steps + (name != "action"), *(features[name]["shape"] if name in features else ()))
        if values.shape != shape:
            raise UserError(
                f"{where}, {name}: shape {values.shape}, expected {shape} ({steps} actions; names and sizes are those of the first episode)"
            )
        if name in cameras and values.dtype != np.uint8:
            raise UserError(f"{where}, {name}: pictures of {values.dtype}, expected uint8 in 0..255; convert them")
    check_finite(where, "observation.state", episode.states)
    check_finite(where, "action", episode.actions)
    if episode.last_action is not None:
        if episode.last_action.shape != episode.actions.shape[1:]:
            raise UserError(f"{where}, last action: shape {episode.last_action.shape}, expected {episode.actions.shape[1:]}")
        check_finite(where, "last action", episode.last_action[None])
    largest = np.abs(episode.actions).max()
    if largest > 1 + 1e-6:
        raise UserError(f"{where}, action: a number of size {largest:.6g}, expected [-1, 1]; scale the actions and describe the scale")
    if episode.success[0] or (episode.success[:-1] > episode.success[1:]).any():
        raise UserError(f"{where}, success: expected False at the first frame and no way back from True; tell what was achieved *so far*")


def check_finite(where: str, name: str, values: np.ndarray) -> None:
    """(rows, numbers)"""
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, number = wrong[0]
        raise UserError(f"{where}, {name}: {values[row, number]} in row {row}, number {number}, expected finite numbers; leave the episode out")
