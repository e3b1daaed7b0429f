"""What LIBERO's and robomimic's files have in common: data/demo_0 and so on, each with actions, observations and, mostly, rewards.

Everything but the pictures is looked at when a source is opened: what differs from the rest is told then, or left out where that is asked for.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..layout import check_finite
from . import frames, hdf5
from .rewards import Outcomes
from .source import SourceConfig

ACTION = "actions"
MOST_NAMES = 2**16  # of one array's numbers, before the array itself was measured
BEYOND = 1 + 1e-3  # single commands beyond 1 are clipped by a controller whose input ends there ...
OFTEN = 0.5  # ... but where so many of the steps lie beyond it, the numbers are no such input


@contextmanager
def left_out(unusable: list[str], skip_bad: bool) -> Iterator[None]:
    """With `skip_bad` a UserError becomes one line in `unusable`."""
    try:
        yield
    except UserError as error:
        if not skip_bad:
            raise
        unusable.append(str(error))


@dataclass
class Demonstration:
    """What is known of one before its pictures are read."""

    file: Path
    name: str
    steps: int
    action_size: int
    beyond: float  # share of the steps with a number beyond [-1, 1]
    rewards: np.ndarray | None
    state: list[str]  # names in the file
    state_names: list[str]  # of its numbers
    cameras: dict[str, list[int]]  # {name in the file: [H, W]}

    @property
    def where(self) -> str:
        return f"{self.file}: {self.name}"


def action_columns(config: SourceConfig) -> list[str]:
    return (config.action or ACTION).split(",")


def numbers(demo, config: SourceConfig, where: str) -> dict:
    """What `Demonstration` says of actions and rewards."""
    if not config.action and len(hdf5.dataset(demo, ACTION, where).shape) != 2:
        found = hdf5.dataset(demo, ACTION, where).shape
        raise UserError(f"{where}, {ACTION}: shape {found}, expected a row of numbers for each step; choose with --action")
    actions = hdf5.rows(demo, action_columns(config), where)
    rewards = hdf5.array(demo, "rewards", where) if hdf5.has(demo, "rewards", where) else None
    if rewards is not None and rewards.size != len(actions):
        raise UserError(
            f"{where}, rewards: shape {rewards.shape}, expected one number for each of {len(actions)} actions; tell outcomes with --success"
        )
    return {
        "steps": len(actions),
        "action_size": actions.shape[1],
        "beyond": float((np.abs(actions) > BEYOND).any(1).mean()) if len(actions) else 0.0,
        "rewards": rewards,
    }


def widths(observations, names: Sequence[str], where: str) -> dict[str, int]:
    """{array: how many numbers a step of it has, MOST_NAMES at most}, without reading them."""
    return {name: min(math.prod(hdf5.dataset(observations, name, where).shape[1:]), MOST_NAMES) for name in names}


def alike(demos: Sequence[Demonstration], unusable: list[str], skip_bad: bool) -> list[Demonstration]:
    """Those with the state and action that most have."""
    kinds = [(demo.action_size, tuple(demo.state_names)) for demo in demos]
    most = Counter(kinds).most_common(1)[0][0]
    kept = []
    for demo, kind in zip(demos, kinds):
        with left_out(unusable, skip_bad):
            if kind != most:
                found = f"{kind[0]} numbers of action and {len(kind[1])} of state ({', '.join(kind[1])[:200]})"
                raise UserError(f"{demo.where}: {found}, but {most[0]} and {len(most[1])} in most demonstrations; ingest those of one kind together")
            kept.append(demo)
    return kept


def with_cameras(demos: Sequence[Demonstration], unusable: list[str], skip_bad: bool) -> list[Demonstration]:
    """All of them, or with `skip_bad` those that have the cameras that most have, with pictures of the size that most have."""
    if not skip_bad or not demos:
        return list(demos)
    most = Counter(frozenset(demo.cameras) for demo in demos).most_common(1)[0][0]
    sizes = {name: Counter(tuple(demo.cameras[name]) for demo in demos if name in demo.cameras).most_common(1)[0][0] for name in most}
    kept = []
    for demo in demos:
        with left_out(unusable, skip_bad):
            missing = sorted(most - set(demo.cameras))
            if missing:
                raise UserError(f"{demo.where}: no {', '.join(missing)}, which most demonstrations have")
            for name, size in sizes.items():
                if tuple(demo.cameras[name]) != size:
                    raise UserError(f"{demo.where}, {name}: pictures of {demo.cameras[name]}, but {list(size)} in most demonstrations")
            kept.append(demo)
    return kept


def common_cameras(demos: Sequence[Demonstration]) -> tuple[list[str], dict[str, str]]:
    """(names in the file of the cameras that all have, {name: why another cannot be taken})."""
    counts = Counter(name for demo in demos for name in demo.cameras)
    missing = {name: f"only {count} of {len(demos)} demonstrations have it" for name, count in counts.items() if count < len(demos)}
    return [name for name in counts if name not in missing], missing


def are_inputs(demos: Sequence[Demonstration]) -> bool:
    """Whether the actions can be a controller's normalized input."""
    return sum(demo.beyond * demo.steps for demo in demos) <= OFTEN * sum(demo.steps for demo in demos)


def colour_names(observations, where: str, endings: tuple[str, ...]) -> dict[str, list[int]]:
    """{name: [H, W]} of the arrays that are called pictures. Depth maps and segmentations are none."""
    called = [name for name in hdf5.names(observations, where) if name.endswith(endings) and not frames.no_picture(name)]
    return {name: frames.size_of(hdf5.dataset(observations, name, where).shape, f"{where}, {name}") for name in called}


def other_pictures(observations, where: str) -> list[str]:
    """One line for each array that looks like a camera's and is none of colours."""
    return [f"{name} is left aside: {frames.no_picture(name)}" for name in hdf5.names(observations, where) if frames.no_picture(name)]


def as_float32(where: str, name: str, values: np.ndarray) -> np.ndarray:
    """(rows, numbers) finite numbers, also in half the bits."""
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    check_finite(where, name, values)
    return values


def named_by_user(config: SourceConfig) -> Outcomes | None:
    return Outcomes(f"recorded ({config.success}, named by --success)", config.success, is_flag=True) if config.success else None


def outcome_column(demo, outcomes: Outcomes, config: SourceConfig, where: str) -> dict[str, np.ndarray]:
    """{its name: a number for each action}; empty where the demonstration has none."""
    name = outcomes.column
    return {name: hdf5.array(demo, name, where)} if name and (config.success or hdf5.has(demo, name, where)) else {}


def read_pictures(observed: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """{camera: (T, H, W, 3) uint8}"""
    return {camera: frames.colours(values, f"{where}, {camera}") for camera, values in observed.items()}
