import math

import numpy as np
import pytest
from scipy import stats

from analysis.intervals import (
    auroc,
    deviation,
    geometric_mean,
    mean,
    mean_interval,
    spearman,
    spearman_interval,
    wilson,
)


def test_wilson_worked_value():
    """5 of 10: z = 1.96, centre (0.5 + z^2/20) / (1 + z^2/10) = 0.5, half-width 0.2634."""
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (3, 7), (40, 64), (999, 1000)])
def test_wilson_agrees_with_scipy(hits, n):
    known = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((known.low, known.high), abs=1e-12)


def test_wilson_of_nothing_is_nan():
    assert all(math.isnan(v) for v in wilson(0, 0))


def test_mean_interval_is_seeded_and_shrinks_with_n():
    values = np.random.default_rng(0).normal(-2.0, 1.0, 400)
    low, high = mean_interval(values)
    assert (low, high) == mean_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)  # normal theory: 2 * 1.96 * sd / sqrt(400)
    assert high - low < np.subtract(*mean_interval(values[:20])[::-1])


def test_means_leave_out_what_was_not_measured():
    assert mean([1.0, math.nan, 3.0]) == 2.0
    assert math.isnan(mean([math.nan]))
    assert deviation([1.0, 3.0, math.nan]) == pytest.approx(math.sqrt(2))
    assert all(math.isnan(v) for v in mean_interval([1.0, math.nan]))


def test_spearman_worked_value():
    """Ranks 1 2 3 4 against 1 3 2 4: rho = 1 - 6 * 2 / (4 * 15) = 0.8; monotone transforms change nothing."""
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 30.0, 20.0, 40.0])
    assert spearman(x, y) == pytest.approx(0.8)
    assert spearman(np.exp(x), -y) == pytest.approx(-0.8)


def test_spearman_without_spread_or_rows_is_nan():
    assert math.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    assert math.isnan(spearman([1.0, 2.0], [1.0, 2.0]))
    assert all(math.isnan(v) for v in spearman_interval([1.0] * 9, range(9)))


def test_spearman_interval_holds_rho_and_widens_with_noise():
    rng = np.random.default_rng(1)
    x = rng.normal(size=80)
    close, far = x + rng.normal(scale=0.3, size=80), x + rng.normal(scale=3.0, size=80)
    low, high = spearman_interval(x, close)
    assert low < spearman(x, close) < high
    assert high - low < np.subtract(*spearman_interval(x, far)[::-1])


def test_auroc_worked_value():
    """Positives score 3 and 1, negatives 2 and 0: of four comparisons three are right. A tie counts half."""
    assert auroc([3, 1, 2, 0], [True, True, False, False]) == 0.75
    assert auroc([1, 1], [True, False]) == 0.5
    assert math.isnan(auroc([1, 2], [True, True]))
    assert auroc([3, math.nan, 0], [True, True, False]) == 1.0


def test_geometric_mean_of_ratios():
    assert geometric_mean([2.0, 8.0, math.nan]) == pytest.approx(4.0)
    assert math.isnan(geometric_mean([]))
    assert math.isnan(geometric_mean([0.0, 1.0]))
