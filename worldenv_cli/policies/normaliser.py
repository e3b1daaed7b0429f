"""A feature's units and the numbers that a model sees, as lerobot knows them: both ways in one place, so that they cannot drift apart."""

import numpy as np
import torch
from torch import Tensor, nn

from ..data.statistics import column_statistics

STATISTICS = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90"), "IDENTITY": ()}


class Normaliser(nn.Module):
    """One feature between its units and what the model sees; `unnormalise` undoes `normalise`.

    MEAN_STD gives zero mean and unit variance; MIN_MAX, QUANTILES (1 % to 99 %) and QUANTILE10 (10 % to 90 %) give [-1, 1] between their two
    bounds, without clipping; IDENTITY changes nothing, and so does every mode until it has statistics (`known`). Buffers stay float32 in a
    policy of another precision: convert the model, not this.
    """

    def __init__(self, mode: str, size: int, statistics: dict[str, Tensor] | None = None, eps: float = 1e-8):
        super().__init__()
        self.mode, self.eps = mode, eps
        self.register_buffer("offset", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("known", torch.tensor(mode == "IDENTITY"))
        self.shift = 0.0 if mode in ("MEAN_STD", "IDENTITY") else 1.0
        self.added = eps if mode == "MEAN_STD" else 0.0
        if statistics is not None:
            self.take(statistics)

    @property
    def std(self) -> Tensor:
        """(size,): how far the feature spreads, in its units; half the distance of the two bounds where the mode has bounds."""
        return self.scale

    def fit(self, values: np.ndarray) -> None:
        """Take the statistics of (N, size) values in the feature's units."""
        self.take({name: torch.from_numpy(value) for name, value in column_statistics(values).items()})

    def take(self, statistics: dict[str, Tensor]) -> None:
        """Use these statistics, {name: (size,)}: the two that `STATISTICS` lists for the mode; others may be there."""
        if self.mode == "IDENTITY":
            return
        first, second = (statistics[name].to(self.offset) for name in STATISTICS[self.mode])
        if self.mode == "MEAN_STD":
            self.scale.copy_(second)
        else:
            self.scale.copy_(torch.where(second == first, self.eps, second - first) / 2)
        self.offset.copy_(first)
        self.known.fill_(True)

    def normalise(self, x: Tensor) -> Tensor:
        """(..., size) in the feature's units -> (..., size) float32 as the model sees it."""
        return (x.float() - self.offset) / (self.scale + self.added) - self.shift * self.known

    def unnormalise(self, x: Tensor) -> Tensor:
        """(..., size) from the model -> (..., size) float32 in the feature's units."""
        return (x.float() + self.shift * self.known) * self.scale + self.offset
