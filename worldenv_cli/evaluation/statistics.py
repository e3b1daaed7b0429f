"""Every figure with its uncertainty: intervals for rates, for paired differences, for rankings and for calibration.

Robot evaluations are small (20-50 episodes a task) and their rates lie near 0 or 1, where the textbook interval, estimate
+- 1.96 standard errors, collapses or leaves [0, 1]. Score intervals (Wilson, Newcombe) keep their coverage there.
Base and tuned policy start from the same states, so that their difference is a *paired* one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

NAN = float("nan")


class Interval(NamedTuple):
    """An estimate and the two ends of its confidence interval; NaN where the data say nothing."""

    estimate: float
    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """A success rate and its Wilson score interval. Without trials any rate in [0, 1] is possible."""
    if n == 0:
        return Interval(NAN, 0.0, 1.0)
    ends = stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return Interval(successes / n, float(ends.low), float(ends.high))


def newcombe(successes_1: int, n_1: int, successes_2: int, n_2: int, confidence: float = 0.95) -> Interval:
    """Difference of two *independent* rates, second minus first: Newcombe 1998, Statist. Med. 17:873, method 10 (hybrid score)."""
    return _square_and_add(wilson(successes_1, n_1, confidence), wilson(successes_2, n_2, confidence), correlation=0.0)


def newcombe_paired(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Difference b - a of two success rates over the same starts, a and b (n,) bool: Newcombe 1998, Statist. Med. 17:2635, method 10."""
    return newcombe_paired_counts(*paired_counts(a, b).values(), confidence=confidence)


def newcombe_paired_counts(both: int, only_a: int, only_b: int, neither: int, confidence: float = 0.95) -> Interval:
    """`newcombe_paired` from the four counts: the hybrid score interval, narrowed by how much the two outcomes go together."""
    n = both + only_a + only_b + neither
    covariance = both * neither - only_a * only_b
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)  # Newcombe's continuity correction
    margins = float(both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    correlation = covariance / margins**0.5 if margins else 0.0
    return _square_and_add(wilson(both + only_a, n, confidence), wilson(both + only_b, n, confidence), correlation)


def _square_and_add(a: Interval, b: Interval, correlation: float) -> Interval:
    """Interval of b - a from those of a and b: the distances to the far ends, added as correlated standard errors."""

    def combined(x: float, y: float) -> float:
        return max(x * x - 2 * correlation * x * y + y * y, 0.0) ** 0.5

    difference = b.estimate - a.estimate
    low = difference - combined(b.estimate - b.low, a.high - a.estimate)
    high = difference + combined(b.high - b.estimate, a.estimate - a.low)
    return Interval(difference, max(low, -1.0), min(high, 1.0))


def paired_counts(a: ArrayLike, b: ArrayLike) -> dict[str, int]:
    """The 2 x 2 table of two (n,) bool outcomes over the same starts: {both, only_a, only_b, neither}."""
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"paired outcomes need the same starts: {a.shape} and {b.shape}")
    counts = {"both": a & b, "only_a": a & ~b, "only_b": ~a & b, "neither": ~a & ~b}
    return {name: int(rows.sum()) for name, rows in counts.items()}


def mcnemar(a: ArrayLike, b: ArrayLike) -> dict[str, float]:
    """The paired counts and `p`, the exact two-sided binomial test of "a pair that differs favours either side equally often"."""
    counts = paired_counts(a, b)
    return counts | {"p": mcnemar_p(counts["only_a"], counts["only_b"])}


def mcnemar_p(only_a: int, only_b: int) -> float:
    differing = only_a + only_b
    return float(stats.binomtest(only_b, differing).pvalue) if differing else 1.0


def clustered_difference(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean paired difference b - a over several tasks and training runs, by a bootstrap that redraws the starts inside each cluster.

    a, b: (n,) bool, the same starts; clusters: (n,) or (n, k) labels, such as (task, run). Tasks and runs are the ones we have, not
    a sample of some population, so they keep their sizes in every redraw and only their starts vary. Percentile interval. It has no
    width when no pair differs: `newcombe_paired` does not have this weakness, and the two belong side by side.
    """
    difference = np.asarray(b, dtype=bool).astype(int) - np.asarray(a, dtype=bool).astype(int)
    if len(difference) == 0:
        return Interval(NAN, NAN, NAN)
    labels = np.unique(np.asarray(clusters).reshape(len(difference), -1), axis=0, return_inverse=True)[1].reshape(-1)
    generator = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for label in range(labels.max() + 1):
        rows = difference[labels == label]
        shares = [(rows == value).mean() for value in (-1, 0, 1)]
        worse, _, better = generator.multinomial(len(rows), shares, size=resamples).T  # redrawing the rows, counted
        total += better - worse
    low, high = np.quantile(total / len(difference), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(difference.mean()), float(low), float(high))


def correlation(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Interval:
    """Pearson's r with Fisher's z interval, which needs four points; NaN where either side does not vary."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Interval(NAN, NAN, NAN)
    result = stats.pearsonr(x, y)
    if len(x) < 4:
        return Interval(float(result.statistic), NAN, NAN)
    ends = result.confidence_interval(confidence)
    return Interval(float(result.statistic), float(ends.low), float(ends.high))


def mean(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """A mean with Student's t interval, which needs two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return Interval(float(values.mean()) if len(values) else NAN, NAN, NAN)
    reach = float(stats.sem(values) * stats.t.ppf((1 + confidence) / 2, len(values) - 1))
    return Interval(float(values.mean()), float(values.mean()) - reach, float(values.mean()) + reach)


def auc(scores: ArrayLike, labels: ArrayLike, confidence: float = 0.95) -> Interval:
    """Probability that a success scores above a failure (ties count half); interval: Newcombe 2006, Statist. Med. 25:559, method 5.

    scores (n,) float, labels (n,) bool. DeLong's interval has no width when the classes separate, which a good reflector shows on
    twenty episodes, and covers 60-90 % instead of 95 % close to that. This one inverts the variance of Hanley and McNeil as
    Wilson's inverts p (1 - p) / n.
    """
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if positives == 0 or negatives == 0:
        return Interval(NAN, NAN, NAN)
    ranks = stats.rankdata(scores)
    estimate = float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    others, z = (positives + negatives) / 2 - 1, stats.norm.ppf((1 + confidence) / 2)

    def excess(area: float) -> float:
        """Squared distance to the estimate beyond what `area` allows: zero at both ends of the interval."""
        spread = 1 + others * (1 - area) / (2 - area) + others * area / (1 + area)
        return (area - estimate) ** 2 - z**2 * area * (1 - area) * spread / (positives * negatives)

    edge = 1e-9  # 0 and 1 are roots themselves when the classes separate
    low = optimize.brentq(excess, 0, min(estimate, 1 - edge)) if estimate > 0 else 0.0
    high = optimize.brentq(excess, max(estimate, edge), 1) if estimate < 1 else 1.0
    return Interval(estimate, float(low), float(high))


def reliability(p: ArrayLike, y: ArrayLike, bins: int = 10) -> list[tuple[float, float, int]]:
    """Rows (mean predicted probability, observed share of successes, n) of the occupied bins of equal width in [0, 1]."""
    p, y = np.asarray(p, dtype=float), np.asarray(y, dtype=float)
    bin_of = np.clip((p * bins).astype(int), 0, bins - 1)
    rows = (bin_of == i for i in range(bins))
    return [(float(p[row].mean()), float(y[row].mean()), int(row.sum())) for row in rows if row.any()]


def expected_calibration_error(p: ArrayLike, y: ArrayLike, bins: int = 10) -> float:
    """Mean distance of predicted probability and observed share over the bins of `reliability`, weighted by their n."""
    table = np.array(reliability(p, y, bins)).reshape(-1, 3)
    return float(np.average(np.abs(table[:, 0] - table[:, 1]), weights=table[:, 2])) if len(table) else NAN
