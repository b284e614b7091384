import math

import numpy as np
import pytest
from scipy import stats

from analysis.tables.intervals import (
    auroc,
    deviation,
    geometric_mean,
    mean,
    mean_interval,
    share_interval,
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


def test_mean_interval_worked_value():
    """1 2 3 4 5: mean 3, SD 1.5811, t(4) 2.7764: half 2.7764 * 1.5811 / sqrt(5) = 1.9632."""
    assert mean_interval([1.0, 2.0, 3.0, 4.0, 5.0, math.nan]) == pytest.approx((1.0368, 4.9632), abs=1e-4)


@pytest.mark.parametrize("n", [5, 8, 16, 60])
@pytest.mark.parametrize(("draw", "within"), [("normal", 0.01), ("logistic", 0.01), ("uniform", 0.02)])
def test_mean_interval_holds_the_mean_in_95_of_100_samples(n, draw, within):
    """The percentile bootstrap held it in 85.5 at n 5, 87.3 at 8 and 91.2 at 16."""
    samples = getattr(np.random.default_rng(n), draw)(size=(10_000, n))
    found = np.array([mean_interval(row) for row in samples])
    true = 0.5 if draw == "uniform" else 0.0
    assert ((found[:, 0] <= true) & (true <= found[:, 1])).mean() == pytest.approx(0.95, abs=within)


def test_values_that_do_not_vary_have_no_interval():
    assert all(math.isnan(v) for v in mean_interval([0.0] * 12))


def test_a_share_over_runs_stays_within_0_and_1():
    """Two seeds at 0 and 1 of 10 pairs: t would say 50 % -+ 635."""
    assert share_interval([0.0, 1.0], [10, 10]) == (0.0, 1.0)
    assert share_interval([1.0, 1.0, 1.0], [10, 10, 10]) == pytest.approx(wilson(30, 30))  # equal seeds: not certain
    assert share_interval([0.4, math.nan], [10, 0]) == pytest.approx(wilson(4, 10))
    assert all(math.isnan(v) for v in share_interval([math.nan], [5]))


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_spearman_interval_holds_rho_in_95_of_100_samples(rho):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1000, 20))
    y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=x.shape)
    found = np.array([spearman_interval(a, b) for a, b in zip(x, y)])
    true = 6 / math.pi * math.asin(rho / 2)  # Spearman's of a bivariate normal
    assert ((found[:, 0] <= true) & (true <= found[:, 1])).mean() > 0.93


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
