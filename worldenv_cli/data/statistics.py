"""What normalisation needs to know of a dataset: exact moments and quantiles of every column.

LeRobot merges the quantiles of single episodes, and a merged quantile is a quantile of nothing. Here a column is kept whole until the
end (numbers are small), and pictures are kept as histograms: 256 counts a channel hold all that a minimum, a mean or a quantile asks for.
"""

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
SAMPLED_FRAMES = 16  # of an episode and camera, evenly spaced
SAMPLED_PIXELS = 128  # a side at most, every n-th of a larger picture


def column_statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """(N,) or (N, D) numbers -> {statistic: (D,)}, "count" (1,). Extremes keep the column's type, so a bool stays a bool as in LeRobot."""
    values = values.reshape(len(values), -1)
    exact = values.astype(np.float64)
    statistics = {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": exact.mean(axis=0),
        "std": exact.std(axis=0),
        "count": np.array([len(values)]),
    }
    return statistics | dict(zip(QUANTILES, np.quantile(exact, list(QUANTILES.values()), axis=0), strict=True))


def sample_frames(frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) -> (t, h, w, 3): enough of an episode's pictures to know their colours, first and last frame among them."""
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), SAMPLED_FRAMES)).round().astype(int)
    stride = -(-max(frames.shape[1:3]) // SAMPLED_PIXELS)
    return frames[chosen, ::stride, ::stride]


def histogram(frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8 -> (3, 256) int64 counts. Histograms of episodes add up to the histogram of the dataset."""
    binned = frames.reshape(-1, 3) + np.arange(0, 768, 256, dtype=np.int16)
    return np.bincount(binned.reshape(-1), minlength=768).reshape(3, 256)


def image_statistics(counts: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """(3, 256) counts -> {statistic: (3, 1, 1)} of the colour channels in [0, 1]; "count" (1,) is the number of pictures, not of pixels."""
    levels = np.arange(256) / 255
    pixels = counts[0].sum()
    mean = counts @ levels / pixels
    variance = (counts * (levels - mean[:, None]) ** 2).sum(axis=1) / pixels
    ranks = np.array([0, *QUANTILES.values(), 1]) * (pixels - 1)
    below, above = np.floor(ranks), np.ceil(ranks)
    cumulative = counts.cumsum(axis=1)
    lower, upper = (levels[np.stack([channel.searchsorted(rank, side="right") for channel in cumulative])] for rank in (below, above))
    ordered = (lower + (upper - lower) * (ranks - below)).T  # (statistic, 3)
    names = ("min", *QUANTILES, "max")
    statistics = dict(zip(names, ordered, strict=True)) | {"mean": mean, "std": np.sqrt(variance)}
    return {name: value.reshape(3, 1, 1) for name, value in statistics.items()} | {"count": np.array([frames])}


def as_lists(statistics: dict[str, np.ndarray]) -> dict[str, list]:
    """For JSON and parquet, in the order that LeRobot writes."""
    return {name: statistics[name].tolist() for name in ("min", "max", "mean", "std", "count", *QUANTILES)}
