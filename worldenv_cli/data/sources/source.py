"""Recorded data of another project, as ingestion sees it: which episodes there are, what they mean, and one of them at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from ...config import Config
from ...errors import UserError
from ..layout import Episode
from ..pictures import AGAIN

UPRIGHT, MIRRORED = "upright, not mirrored", "upright, mirrored left to right"
ASSUMED = "assumed at the last frame: the source holds demonstrations and does not record it"
RECORDED = "as recorded by the source"
LARGEST = 8192  # pixels a side


class SourceConfig(Config):
    """What a source cannot say by itself, or says in several ways."""

    instruction: str | None = Field(None, description="of every episode, for sources that record none")
    filter_key: str | None = Field(None, description="robomimic: only the demonstrations of this mask, such as train")
    drop_no_ops: bool = Field(False, description="LIBERO: leave out steps that move nothing")
    state: tuple[str, ...] | None = Field(None, description="names in the source that make up observation.state, in this order")
    action: str | None = Field(None, description="name of the action in the source")
    control_hz: int | None = Field(None, ge=1, le=10_000, description="actions a second, where the source records none, or not the one played")


@dataclass(frozen=True)
class Listed:
    """An episode that can be read, and what is known of it before."""

    name: str  # where it lies: for messages and for the record of what was taken
    instruction: str  # empty where the source records none, or several for one episode
    steps: int  # as recorded
    key: tuple  # the source's own


@dataclass
class Source:
    """`read(listed, pictures)` gives the episode: observations before every action and after the last one, whatever the source's own habit;
    without `pictures` its frames are left out, which takes a fraction of the time.
    """

    format: str
    path: Path
    control_hz: int
    robot: str
    state_names: list[str]
    action_names: list[str]
    action: dict  # {"meaning", "range", "unit"}: what 1 means in each dimension
    cameras: dict[str, dict]  # {camera: {"orientation", "size" [H, W], and intrinsics and extrinsics where known}}
    success: str  # RECORDED or ASSUMED
    episodes: list[Listed]
    read: Callable[[Listed, bool], Episode]
    read_as: dict = field(default_factory=dict)  # the SourceConfig that it was opened with


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], data, where: str) -> Model:
    """What a source says about itself, once every field has the type that is needed here; fields that are not are ignored."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(str(part) for part in wrong["loc"]) or "the whole"
        raise UserError(f"{where}: {field} is {repr(wrong['input'])[:60]} ({wrong['msg']}); {AGAIN}") from error


def check_picture(shape: list[int], where: str, channels: tuple[int, ...]) -> None:
    """Refuse what is no picture of three colours, or is too large to be one; `channels` are the places where the colours may be."""
    if len(shape) != 3 or 3 not in [shape[place] for place in channels] or max(shape) > LARGEST:
        raise UserError(f"{where}: shape {shape}, expected [height, width, 3] with sides of {LARGEST} at most")


def success_at_the_end(length: int) -> np.ndarray:
    """(length,) bool, True at the last frame only."""
    return np.arange(length) == length - 1


def so_far(achieved: np.ndarray) -> np.ndarray:
    """(T,) what was true after each action -> (T + 1,) what has been achieved by each frame."""
    return np.append(False, np.logical_or.accumulate(achieved.astype(bool)))


def unit_range(where: str, actions: np.ndarray) -> np.ndarray:
    """(T, A) float32 actions that lie in [-1, 1] but for rounding."""
    wrong = np.argwhere(~(np.abs(actions) <= 1 + 1e-6))
    if len(wrong):
        step, dimension = wrong[0]
        raise UserError(f"{where}, action: {actions[step, dimension]:.6g} at step {step}, dimension {dimension}, expected [-1, 1]; drop the episode")
    return np.clip(actions, -1, 1).astype(np.float32)
