"""Recorded data of another project, as ingestion sees it: which episodes there are, what they mean, and one of them at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ...config import Config
from ...errors import UserError
from ..layout import Episode
from ..pictures import AGAIN

UPRIGHT, MIRRORED = "upright, not mirrored", "upright, mirrored left to right"
LARGEST = 8192  # pixels a side


class SourceConfig(Config):
    """What a source cannot say by itself, or says in several ways."""

    instruction: str | None = Field(None, description="of every episode, for sources that record none")
    filter_key: str | None = Field(None, description="robomimic: only the demonstrations of this mask, RLDS: only this split, such as train")
    drop_no_ops: bool = Field(False, description="LIBERO: leave out steps that move nothing")
    state: tuple[str, ...] | None = Field(None, description="names in the source that make up observation.state, in this order")
    action: str | None = Field(None, description="name of the action in the source")
    control_hz: float | None = Field(None, gt=0, le=10_000, description="actions a second, where the source records none, or not the one played")
    outcome: Literal["success", "failure"] | None = Field(None, description="of every episode whose outcome the source does not record")
    success: str | None = Field(None, description="where outcomes are told: a column of the source, or a CSV or JSON file")
    gripper: Literal["1 opens", "1 closes"] | None = Field(None, description="what the action's last number does, where the source does not say")
    skip_bad: bool = Field(False, description="leave out what cannot be opened or listed, and name it, instead of stopping")


@dataclass(frozen=True)
class Listed:
    """An episode that can be read, and what is known of it before."""

    name: str  # where it lies: for messages and for the record of what was taken
    instruction: str  # empty where the source records none, or several for one episode
    steps: int  # as recorded
    key: tuple  # the source's own
    problem: str = ""  # why it cannot be taken although it can be listed, such as several instructions: one line with what to do


@dataclass
class Source:
    """`read(listed, cameras)` gives the episode: observations before every action and after the last one, whatever the source's own habit, actions
    as recorded (float32, finite, not scaled or clipped), and only the named cameras decoded, which takes a fraction of the time of all.
    """

    format: str
    path: Path
    control_hz: float | None  # None: the source does not record it, and it has to be told
    robot: str | None  # None: unknown
    state_names: list[str]
    action_names: list[str]
    action: dict  # {"meaning", "unit": physical size of 1 of a normalized controller input, or None, "absolute": True for targets}; no scale in it
    cameras: dict[str, dict]  # {camera: {"orientation" (None: unknown), "size" [H, W], and intrinsics and extrinsics where known}}
    episodes: list[Listed]
    read: Callable[[Listed, Sequence[str]], Episode]
    outcome: str  # how outcomes are known, one line for people: "recorded (next.success)", "unknown: ..."
    limits: tuple[list[float], list[float]] | None = None  # (low, high) of the action, where the source or its controller says so
    gripper: dict | None = None  # {"dimension", "closes": 1 or -1} or {"dimension", "open", "closed"}, where the format says so
    unusable: list[str] = field(default_factory=list)  # what could not be listed, with its reason; only with skip_bad
    unusable_cameras: dict[str, str] = field(default_factory=dict)  # {camera: why it cannot be taken}; an error only where it is asked for
    notes: list[str] = field(default_factory=list)  # what was read, assumed or ignored, one line each
    closing_row: str | None = None  # what the last row of its episodes holds, where a dataset of ours says so
    read_as: dict = field(default_factory=dict)  # the SourceConfig that it was opened with


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], data, where: str) -> Model:
    """What a source says about itself, once every field has the type that is needed here; fields that are not are ignored."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(str(part) for part in wrong["loc"]) or "the whole"
        raise UserError(f"{where}: {field} is {repr(wrong['input'])[:60]} ({wrong['msg']}); correct it there, or {AGAIN}") from error


def check_picture(shape: list[int], where: str, channels: tuple[int, ...]) -> None:
    """Refuse what is no picture of three colours, or is too large to be one; `channels` are the places where the colours may be."""
    if len(shape) != 3 or 3 not in [shape[place] for place in channels] or max(shape) > LARGEST:
        raise UserError(f"{where}: shape {shape}, expected [height, width, 3] with sides of {LARGEST} at most")
