"""HDF5 files from anybody: opened read-only, followed nowhere else, and every way to be broken told as one line."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import BaseModel, PositiveInt

from ...errors import UserError

DEMOS = "data"


@contextmanager
def opened(path: Path) -> Iterator:
    """The `h5py.File`. Raises UserError where h5py is missing or the file is not whole."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading HDF5 needs h5py; pip install 'worldenv[hdf5]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: not a whole HDF5 file ({_reason(error)}); copy or download it again") from error
    with file:
        yield file


def group(parent, name: str, where: str):
    """A group inside its file: a link to another file is not followed."""
    import h5py

    link = parent.get(name, getlink=True)
    if link is None:
        raise UserError(f"{where}: no {name}, found {sorted(parent)[:8]}; is it another format, or another --state, --action or --cameras?")
    if isinstance(link, h5py.ExternalLink):
        raise UserError(f"{where}, {name}: a link to another file ({link.filename!r}), expected the data itself; do not trust this file")
    return parent[name]


def array(parent, name: str, where: str) -> np.ndarray:
    """A whole dataset of the file, itself stored there."""
    import h5py

    for part in name.split("/")[:-1]:
        parent = group(parent, part, where)
    found = group(parent, name.rsplit("/", 1)[-1], where)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{where}, {name}: a group, expected an array; check --state, --action and --cameras")
    if found.external or found.is_virtual:
        raise UserError(f"{where}, {name}: its numbers lie in another file, expected them here; do not trust this file")
    if found.dtype.kind not in "biuf":
        raise UserError(f"{where}, {name}: {found.dtype}, expected numbers")
    try:
        values = found[()]
    except (OSError, RuntimeError) as error:
        raise UserError(f"{where}, {name}: cannot be read ({_reason(error)}); copy or download the file again") from error
    if not values.ndim:
        raise UserError(f"{where}, {name}: one number, expected one for each step; drop the demonstration")
    return values


def table(parent, name: str, where: str) -> np.ndarray:
    """(T, D) numbers."""
    found = array(parent, name, where)
    if found.ndim != 2:
        raise UserError(f"{where}, {name}: shape {found.shape}, expected a row of numbers for each step; drop the demonstration")
    return found


def shape(parent, name: str, where: str, dimensions: int) -> tuple[int, ...]:
    """Of an array that is not read yet."""
    found = group(parent, name, where)
    if len(getattr(found, "shape", ())) != dimensions:
        raise UserError(f"{where}, {name}: shape {getattr(found, 'shape', None)}, expected {dimensions} dimensions; drop the demonstration")
    return found.shape


def demos(file, path: Path) -> list[str]:
    """Names of the demonstrations, by number."""
    names = [name for name in group(file, DEMOS, str(path)) if name.rpartition("_")[2].isdigit()]
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def same_length(where: str, arrays: dict[str, np.ndarray]) -> int:
    """The number of rows that all of them have."""
    lengths = {name: len(values) if values.ndim else 0 for name, values in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"{where}: lengths differ ({', '.join(f'{name} {n}' for name, n in lengths.items())}); drop the demonstration")
    return next(iter(lengths.values()))


def pictures(parent, name: str, where: str) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    frames = array(parent, name, where)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise UserError(f"{where}, {name}: {frames.dtype} {frames.shape}, expected uint8 (T, H, W, 3)")
    return frames


def json_attribute(holder, name: str, where: str) -> dict:
    if name not in holder.attrs:
        raise UserError(f"{where}: no attribute {name}, found {sorted(holder.attrs)[:8]}; is it another format?")
    try:
        found = json.loads(holder.attrs[name])
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}, {name}: not JSON ({error}); copy or download the file again") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}, {name}: {str(found)[:60]!r}, expected an object; copy or download the file again")
    return found


class Arguments(BaseModel):
    robots: list[str] | str = "unknown"
    control_freq: PositiveInt = 20
    controller_configs: dict = {}


class EnvironmentArguments(BaseModel):
    """robosuite's `env_args`, as LIBERO and robomimic keep it."""

    env_name: str = "unknown"
    env_kwargs: Arguments = Arguments()

    @property
    def robot(self) -> str:
        robots = self.env_kwargs.robots
        return (robots if isinstance(robots, str) else robots[0] if robots else "unknown").lower()

    def unit(self, size: int) -> list[float] | None:
        """What 1 means in each of the action's dimensions, the gripper's last; None where the controller does not say."""
        limits = self.env_kwargs.controller_configs.get("output_max")
        known = isinstance(limits, list) and len(limits) == size - 1 and all(isinstance(limit, (int, float)) for limit in limits)
        return [*limits, 1.0] if known else None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0]
