"""What rewards say of success, once those of a whole source have been seen: one size of reward is a success, many sizes are not."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..layout import UNKNOWN
from ..outcomes import at_the_end, flags, not_recorded, rewarded, so_far

TELL = "tell it with --success or --outcome"


@dataclass(frozen=True)
class Outcomes:
    """How a source's outcomes are known: `told` says so in one line."""

    told: str
    column: str | None = None  # flags or rewards, one for each action
    is_flag: bool = False
    demonstrations: bool = False  # the format says that everything in it succeeded

    def of(self, where: str, values: np.ndarray | None, frames: int) -> tuple[np.ndarray, dict]:
        """((frames,) success so far, what goes into `Episode.info`); `values` are the column's, None where the episode has none."""
        if self.column is not None and values is not None:
            return so_far((flags if self.is_flag else rewarded)(where, self.column, values), frames), {}
        if self.demonstrations:
            return at_the_end(frames), {}
        return not_recorded(frames), {"outcome": UNKNOWN}


def by_rewards(column: str, all_rewards: Iterable[np.ndarray], zeros_count: bool) -> Outcomes:
    """`zeros_count`: whether a source without any reward above 0 holds failures; many sets keep zeros only because the column has to be there."""
    sizes: set[float] = set()
    for values in all_rewards:
        if values.dtype.kind in "biuf":
            sizes |= set(np.unique(values[np.isfinite(values)]).tolist()[:4])
    if not sizes:
        return Outcomes(f"unknown: {column} not recorded, or no finite numbers; {TELL}")
    above = sorted(size for size in sizes if size > 0)
    if len(above) > 1 or min(sizes) < 0 or (above not in ([], [1.0]) and 0 not in sizes):
        return Outcomes(f"unknown: {column} of several sizes are no success; {TELL}")
    if not above and not zeros_count:
        return Outcomes(f"unknown: {column} are 0 everywhere; {TELL}")
    return Outcomes(f"recorded ({column} > 0)", column)
