"""Means, paired changes and the frontier over steps: worked numbers."""

import math

import pandas as pd
import pytest

from analysis.tables import curves
from analysis.tables.intervals import wilson

ROWS = pd.DataFrame(
    [
        (0, "a", 1.0, 0.0, 0.0, 0.0),
        (0, "b", 3.0, 0.0, 0.0, 0.0),
        (5, "b", 4.0, 2.0, 6.0, 1.0),  # in another order than at step 0
        (5, "a", 5.0, 0.0, 2.0, -1.0),
        (9, "a", 7.0, 9.0, 9.0, 4.0),
        (9, "b", math.nan, 9.0, 9.0, 2.0),
    ],
    columns=["step", "pair_id", "value", "chosen_kl_reverse", "rejected_kl_reverse", "margin_change"],
)


def test_means_by_step_leave_out_what_was_not_measured():
    table = curves.means(ROWS, "value")
    assert table[["step", "n", "mean"]].to_numpy().tolist() == [[0, 2, 2.0], [5, 2, 4.5], [9, 1, 7.0]]
    half = 12.7062 * math.sqrt(0.5) / math.sqrt(2)  # t(1) SD / sqrt(2) of 4 and 5
    assert (table["low"][1], table["high"][1]) == pytest.approx((4.5 - half, 4.5 + half), rel=1e-5)
    assert math.isnan(table["low"][2])
    assert curves.means(ROWS, "absent").empty


def test_a_change_is_taken_pair_by_pair_and_joined_by_id():
    """a: 7 - 1 = 6 at the last step measured; b is missing there. To step 5: 5 - 1 and 4 - 3, mean 2.5."""
    assert (curves.change(ROWS, "value").n, curves.change(ROWS, "value").mean) == (1, 6.0)
    early = curves.change(ROWS[ROWS["step"] < 9], "value")
    assert (early.n, early.mean) == (2, 2.5)
    assert sum(early.interval) == pytest.approx(2 * 2.5)
    assert curves.change(ROWS[ROWS["step"] == 0], "value").n == 0
    assert math.isnan(curves.change(ROWS, "absent").mean)


def test_the_frontier_is_the_root_of_the_mean_divergence_of_both_sides():
    """Step 5: mean KL ((2 + 6) / 2 + (0 + 2) / 2) / 2 = 2.5, one margin of two grew; step 9: 9, both grew."""
    table = curves.frontier(ROWS)
    assert table["step"].tolist() == [5, 9]
    assert table["deviation"].tolist() == pytest.approx([math.sqrt(2.5), 3.0])
    assert table["accuracy"].tolist() == [0.5, 1.0]
    assert table["margin"].tolist() == [0.0, 3.0]
    assert (table["accuracy_low"][1], table["accuracy_high"][1]) == wilson(2, 2)
    assert curves.frontier(ROWS.assign(chosen_kl_reverse=math.nan)).empty


def test_per_token():
    rows = pd.DataFrame(dict(chosen_logps=[-6.0], chosen_length=[3.0], rejected_logps=[-2.0], rejected_length=[4.0]))
    assert curves.per_token(rows)[["chosen_avg_logps", "rejected_avg_logps"]].to_numpy().tolist() == [[-2.0, -0.5]]
