"""Actions as recorded and as datasets of this project hold them: `recorded = offset + unit * stored`, stored in [-1, 1].

All sources that become one dataset share one scale: their limits where those are known and equal, else their common extremes. A scale is undone
before another one is made, so that scales never stack, and what was recorded can always be had back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError

ROUNDING = 1e-6  # by which a number may lie beyond its limits without being a command beyond them
SMALLEST = 1e-6  # half a range that is not stretched any more: a constant stays where it is


@dataclass(frozen=True)
class ActionScale:
    offset: np.ndarray  # (A,) float64
    unit: np.ndarray  # (A,) float64, above 0

    @classmethod
    def identity(cls, size: int) -> "ActionScale":
        return cls(np.zeros(size), np.ones(size))

    @classmethod
    def between(cls, low: Sequence[float], high: Sequence[float]) -> "ActionScale":
        """Maps `low` to -1 and `high` to 1, dimension by dimension."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        return cls((low + high) / 2, np.maximum((high - low) / 2, SMALLEST))

    @classmethod
    def described(cls, action: dict, size: int, where: str) -> "ActionScale":
        """What meta/worldenv.json says of an action: the identity where it has no offset."""
        if "offset" not in action:
            return cls.identity(size)
        try:
            offset, unit = np.array(action["offset"], np.float64), np.array(action["unit"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}, action: offset without a unit for each number; ingest the recording again") from error
        if offset.shape != (size,) or unit.shape != (size,) or not np.isfinite([offset, unit]).all() or (unit <= 0).any():
            raise UserError(f"{where}, action: offset {offset.shape} and unit {unit.shape}, expected {size} finite numbers each, units above 0")
        return cls(offset, unit)

    @property
    def is_identity(self) -> bool:
        return bool((self.offset == 0).all() and (self.unit == 1).all())

    def to_unit(self, recorded: np.ndarray) -> np.ndarray:
        """(..., A) as recorded -> float64, in [-1, 1] between the limits; nothing is clipped."""
        return (np.asarray(recorded, np.float64) - self.offset) / self.unit

    def to_recorded(self, stored: np.ndarray) -> np.ndarray:
        """The inverse: (..., A) float64 in recorded units."""
        return self.offset + self.unit * np.asarray(stored, np.float64)

    def description(self) -> dict:
        """Its part of meta/worldenv.json's action; nothing where what is stored is what was recorded."""
        if self.is_identity:
            return {}
        return {"recorded": "recorded = offset + unit * action", "offset": self.offset.tolist(), "unit": self.unit.tolist()}
