import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from analysis.tables import weighted

# six pairs, best predictor on top: fell, fell, not, fell, not, not
X = np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
FELL = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
ONE = np.ones((1, 6))


def test_auroc_by_hand():
    """Nine comparisons of one that fell with one that did not; only (3, 4) is the wrong way round: 8 / 9."""
    assert weighted.auroc(X, FELL, ONE) == pytest.approx([8 / 9])


def test_average_precision_by_hand():
    """Precision where each of the three is found: 1/1, 2/2, 3/4; mean 11/12."""
    assert weighted.average_precision(X, FELL, ONE) == pytest.approx([11 / 12])


def test_precision_by_hand():
    """A tenth of six is one pair, the highest, and it fell. Half of six are three, of which two fell."""
    assert weighted.precision_at(X, FELL, ONE, 0.1) == pytest.approx([1.0])
    assert weighted.precision_at(X, FELL, ONE, 0.5) == pytest.approx([2 / 3])


def test_a_tie_at_the_border_counts_in_part():
    """Two rows share the first place and one of them fell: either may be the flagged one."""
    assert weighted.precision_at(np.array([2.0, 2.0, 1.0]), np.array([1.0, 0.0, 0.0]), np.ones((1, 3)), 0.1) == [0.5]


def test_strata_compare_like_with_like():
    """Strata hold (6, 5, 4) and (3, 2, 1): 6 and 5 beat 4, and 3 beats 2 and 1: all four are right."""
    strata = np.array([0, 0, 0, 1, 1, 1])
    assert weighted.auroc(X, FELL, ONE, strata) == pytest.approx([1.0])
    assert weighted.within(X, strata) == pytest.approx([5 / 6, 3 / 6, 1 / 6, 5 / 6, 3 / 6, 1 / 6])


def test_weights_are_copies_of_rows():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 8, 40).astype(float), rng.integers(0, 8, 40).astype(float)
    fell = (y > 4).astype(float)
    w = weighted.draws(5, 40, seed=3)
    assert (w.sum(1) == 40).all()
    for k, row in enumerate(w.astype(int)):
        a, b, f = (np.repeat(v, row) for v in (x, y, fell))
        assert weighted.spearman(x, y, w)[k] == pytest.approx(stats.spearmanr(a, b).statistic)
        assert weighted.auroc(x, fell, w)[k] == pytest.approx(metrics.roc_auc_score(f, a))
        assert weighted.average_precision(x, fell, w)[k] == pytest.approx(metrics.average_precision_score(f, a))


def test_partial_spearman_removes_a_common_cause():
    rng = np.random.default_rng(2)
    cause = rng.normal(size=2000)
    x, y = cause + rng.normal(size=2000), cause + rng.normal(size=2000)
    one = weighted.draws(0, 2000)
    assert weighted.spearman(x, y, one)[0] > 0.4
    assert abs(weighted.partial_spearman(x, y, cause, one)[0]) < 0.06
    assert math.isnan(weighted.partial_spearman(cause, y, cause, one)[0])
    assert weighted.partial_spearman(x, y, np.zeros(2000), one) == weighted.spearman(x, y, one)


def test_strata_hold_ten_rows_and_keep_ties_together():
    assert np.bincount(weighted.strata_of(np.arange(50.0))).tolist() == [10] * 5
    assert len(set(weighted.strata_of(np.arange(500.0)))) == 10
    assert len(set(weighted.strata_of(np.zeros(50)))) == 1


def test_one_class_or_no_spread_is_nan():
    assert math.isnan(weighted.auroc(X, np.ones(6), ONE)[0])
    assert math.isnan(weighted.average_precision(X, np.zeros(6), ONE)[0])
    assert math.isnan(weighted.spearman(X, np.ones(6), ONE)[0])
