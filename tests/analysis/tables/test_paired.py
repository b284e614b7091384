"""Differences of the same pairs in two runs, and how sure they are."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.tables.intervals import paired_share_interval, wilson
from analysis.tables.paired import difference


def _column(values) -> pd.Series:
    return pd.Series(list(values), index=[f"p{i}" for i in range(len(values))], dtype=float)


def test_a_mean_difference_is_the_paired_t_interval():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 5, 30), rng.normal(0, 1, 30)
    found = difference(_column(a), _column(a + b))
    known = stats.ttest_rel(a + b, a).confidence_interval(0.95)
    assert found.interval == pytest.approx((known.low, known.high))
    assert found.value == pytest.approx(b.mean())


def test_pairs_are_joined_by_their_ids_and_unmeasured_ones_left_out():
    a = pd.Series({"x": 1.0, "y": 2.0, "z": math.nan, "w": 4.0})
    b = pd.Series({"w": 14.0, "z": 5.0, "y": 3.0, "v": 9.0})
    found = difference(a, b)
    assert (found.n, found.before, found.after, found.value) == (2, 3.0, 8.5, 5.5)
    assert difference(a, b.loc[["v"]]).n == 0


def test_an_infinite_value_is_not_dropped():
    found = difference(_column([1, 2, 3]), _column([1, 2, -math.inf]))
    assert found.value == -math.inf
    assert math.isnan(found.interval[0])


def test_paired_shares_cover_what_they_claim():
    """2,000 draws of 40 pairs whose two outcomes are correlated: the true difference lies within in about 95 %."""
    rng = np.random.default_rng(1)
    chances = [0.35, 0.10, 0.25, 0.30]  # both, first only, second only, neither: 45 % and 60 %
    draws = rng.multinomial(40, chances, 2000)
    within = [low <= 0.15 <= high for low, high in (paired_share_interval(*(int(k) for k in d)) for d in draws)]
    assert 0.935 <= np.mean(within) <= 0.975


def test_correlation_narrows_the_interval_and_turning_it_round_mirrors_it():
    agreeing = paired_share_interval(20, 2, 8, 20)
    opposed = paired_share_interval(8, 14, 20, 8)  # the same two shares, and hardly a pair agrees
    assert opposed[0] < agreeing[0] < agreeing[1] < opposed[1]
    low, high = paired_share_interval(20, 8, 2, 20)
    assert agreeing == pytest.approx((-high, -low))


def test_all_pairs_alike_leave_room_and_none_leaves_nothing():
    low, high = paired_share_interval(12, 0, 0, 0)
    assert (low, high) == pytest.approx((wilson(12, 12)[0] - 1, 1 - wilson(12, 12)[0]))
    assert math.isnan(paired_share_interval(0, 0, 0, 0)[0])
    assert paired_share_interval(0, 5, 0, 0)[0] >= -1
