"""Against published tables, statsmodels, scipy and brute force."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from worldenv_cli.evaluation import statistics
from worldenv_cli.evaluation.statistics import (
    auc,
    clustered_difference,
    correlation,
    expected_calibration_error,
    mcnemar,
    mcnemar_p,
    newcombe,
    newcombe_paired,
    newcombe_paired_counts,
    paired_counts,
    reliability,
    wilson,
)


def outcomes(both, only_a, only_b, neither):
    counts = (both, only_a, only_b, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (81, 263), (15, 148), (0, 20), (1, 29)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_is_that_of_statsmodels(successes, n, confidence):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert wilson(successes, n, confidence)[1:] == pytest.approx(expected, abs=1e-9)


# Newcombe 1998, Statist. Med. 17:857, table I, method 3
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_published(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((successes / n, low, high), abs=5e-5)


def test_wilson_without_trials_knows_nothing():
    estimate, low, high = wilson(0, 0)
    assert math.isnan(estimate) and (low, high) == (0, 1)


# Newcombe 1998, Statist. Med. 17:873, table II, method 10: first minus second, so that the signs are turned here
@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_published(first, second, low, high):
    estimate = first[0] / first[1] - second[0] / second[1]
    assert newcombe(*second, *first) == pytest.approx((estimate, low, high), abs=5e-5)
    assert newcombe(*first, *second) == pytest.approx((-estimate, -high, -low), abs=5e-5)


# Newcombe 1998, Statist. Med. 17:2635, table III, method 10: both, only the first, only the second, neither; first minus second
@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((35, 14, 0, 1), 0.1461, 0.4175),
        ((18, 14, 0, 18), 0.1441, 0.3963),
        ((2, 97, 1, 0), 0.8721, 0.9854),
        ((0, 29, 1, 0), 0.6666, 0.9882),
        ((1, 98, 0, 1), 0.9171, 0.9916),
        ((0, 30, 0, 0), 0.8395, 1.0),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((53, 0, 0, 1), -0.0729, 0.0729),
        ((27, 0, 0, 27), -0.0351, 0.0351),
    ],
)
def test_newcombe_paired_published(counts, low, high):
    first, second = outcomes(*counts)
    estimate = first.mean() - second.mean()
    assert newcombe_paired(second, first) == pytest.approx((estimate, low, high), abs=5e-5)
    assert newcombe_paired(first, second) == pytest.approx((-estimate, -high, -low), abs=5e-5)


def test_newcombe_paired_with_anticorrelated_outcomes():
    """Airway hyper-responsiveness, Bentur 2009, in Fagerland, Lydersen, Laake (Statist. Med. 2014): -0.286, -0.507 to -0.026."""
    assert newcombe_paired_counts(1, 7, 1, 12) == pytest.approx((-0.2857, -0.5069, -0.0256), abs=5e-5)


def test_newcombe_paired_covers():
    """Exact coverage at n = 12 over the multinomial of the four outcomes, for correlated policies that differ by 20 points."""
    shares, n, covered = (0.5, 0.05, 0.25, 0.2), 12, 0.0
    for counts in itertools.product(range(n + 1), repeat=3):
        if sum(counts) <= n:
            counts = (*counts, n - sum(counts))
            weight = stats.multinomial.pmf(counts, n, shares)
            if weight > 1e-9:
                _, low, high = newcombe_paired_counts(*counts)
                covered += weight * (low <= 0.2 <= high)
    assert 0.93 < covered < 0.99


def test_mcnemar_is_that_of_statsmodels():
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    for counts in [(30, 1, 9, 10), (5, 3, 3, 5), (0, 0, 6, 0), (10, 12, 2, 3)]:
        both, only_a, only_b, neither = counts
        expected = tables.mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue
        result = mcnemar(*outcomes(*counts))
        assert result.pop("p") == pytest.approx(expected)
        assert tuple(result.values()) == counts and list(result) == ["both", "only_a", "only_b", "neither"]
    assert mcnemar_p(0, 0) == 1


def test_paired_outcomes_need_the_same_starts():
    with pytest.raises(ValueError, match="same starts"):
        paired_counts([True], [True, False])


def test_clustered_difference_is_a_stratified_bootstrap():
    generator = np.random.default_rng(1)
    a, b = generator.random(60) < 0.4, generator.random(60) < 0.6
    clusters = [("reach", 0)] * 15 + [("reach", 1)] * 15 + [("push", 0)] * 30
    result = clustered_difference(a, b, clusters)
    assert result == clustered_difference(a, b, clusters)
    assert result.estimate == pytest.approx(b.mean() - a.mean())
    redraws = []
    for _ in range(4000):
        rows = np.concatenate([generator.integers(0, 15, 15), generator.integers(15, 30, 15), generator.integers(30, 60, 30)])
        redraws.append(b[rows].mean() - a[rows].mean())
    assert result[1:] == pytest.approx(np.quantile(redraws, [0.025, 0.975]), abs=0.02)


def test_clustered_difference_leaves_out_what_lies_between_clusters():
    """A task that is always won by b and one that never differs: no start can change the mean, whatever is redrawn."""
    a, b = np.zeros(40, bool), np.arange(40) < 20
    assert clustered_difference(a, b, b) == pytest.approx((0.5, 0.5, 0.5))
    assert clustered_difference(a, b, np.zeros(40)).low < 0.45


def test_correlation():
    x, y = [1.0, 2, 3, 4, 5, 6], [1.1, 1.9, 3.5, 3.2, 5.1, 5.0]
    r = np.corrcoef(x, y)[0, 1]
    reach = stats.norm.ppf(0.975) / math.sqrt(len(x) - 3)
    assert correlation(x, y) == pytest.approx((r, math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)))
    estimate, low, high = correlation(x[:3], y[:3])
    assert estimate == pytest.approx(np.corrcoef(x[:3], y[:3])[0, 1]) and math.isnan(low) and math.isnan(high)
    assert all(math.isnan(value) for value in correlation([1, 1, 1, 1], [1, 2, 3, 4]))


def test_mean():
    values = [1.0, 2.5, 3.0, 7.0]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert statistics.mean(values) == pytest.approx((3.375, *expected))
    assert statistics.mean([2.0])[0] == 2 and math.isnan(statistics.mean([2.0]).low)


# Hanley and McNeil 1982, Radiology 143:29, table I: ratings 1-5 of 58 normal and 51 abnormal CT images; area 0.893, standard error 0.032
RATINGS = np.repeat([1, 2, 3, 4, 5] * 2, [33, 6, 6, 11, 2, 3, 2, 2, 11, 33])
ABNORMAL = np.repeat([False, True], [58, 51])


def test_auc_published():
    estimate, low, high = auc(RATINGS, ABNORMAL)
    assert estimate == pytest.approx(0.893, abs=5e-4)
    assert low < estimate - 1.96 * 0.032 < estimate < high < estimate + 1.96 * 0.032  # a score interval leans towards one half
    assert (high - low) / (2 * 1.96) == pytest.approx(0.032, abs=2e-3)


def test_auc_is_the_share_of_ordered_pairs():
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, 6, 40) / 5, generator.random(40) < 0.3
    pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x in scores[labels] for y in scores[~labels]]
    assert auc(scores, labels).estimate == pytest.approx(np.mean(pairs))
    estimate, low, high = auc(-scores, labels)
    assert (1 - estimate, 1 - high, 1 - low) == pytest.approx(auc(scores, labels))


def test_auc_with_one_of_each_is_wilson_with_one_trial():
    assert auc([0.2, 0.8], [False, True]) == pytest.approx(wilson(1, 1))


def test_auc_that_separates_still_has_a_width():
    estimate, low, high = auc(np.arange(20), np.arange(20) >= 10)
    assert (estimate, high) == (1, 1) and 0.7 < low < 0.9
    assert all(math.isnan(value) for value in auc([0.1, 0.2], [True, True]))


def test_auc_covers():
    """200 simulated reflectors on 15 failures and 15 successes with a true area of 0.9."""
    generator, shift = np.random.default_rng(0), stats.norm.ppf(0.9) * math.sqrt(2)
    labels, covered = np.arange(30) < 15, 0
    for _ in range(200):
        _, low, high = auc(generator.normal(size=30) + shift * labels, labels)
        covered += low <= 0.9 <= high
    assert 0.92 <= covered / 200 <= 1


def test_calibration():
    p = [0.05, 0.05, 0.45, 0.45, 0.95, 1.0]
    y = [0, 0, 1, 0, 1, 1]
    assert reliability(p, y, 10) == [(pytest.approx(0.05), 0, 2), (pytest.approx(0.45), 0.5, 2), (pytest.approx(0.975), 1, 2)]
    assert expected_calibration_error(p, y) == pytest.approx((0.05 + 0.05 + 0.025) / 3)
    assert math.isnan(expected_calibration_error([], []))


def test_a_calibrated_predictor_has_a_small_error():
    generator = np.random.default_rng(0)
    p = generator.random(20_000)
    assert expected_calibration_error(p, generator.random(20_000) < p) < 0.015
    assert expected_calibration_error(p, generator.random(20_000) < p**3) > 0.2
