"""The reference-margin audit: worked values, and the loss at which a ranking flips."""

import math

import numpy as np
import pandas as pd
import pytest

from diagnostics.margins import BETA, COLUMNS, reference_margins


def frame(chosen, rejected, length) -> pd.DataFrame:
    values = {"chosen_logps": chosen, "rejected_logps": rejected, "rejected_length": length}
    return reference_margins(pd.DataFrame({name: [float(v)] for name, v in values.items()}))


def test_worked_value():
    """ln pi(y+) = -30 and ln pi(y-) = -20 over 5 tokens: margin -10, tail -20 / 5 = -4, and the pair is ranked right
    only below -ln sigmoid(0.1 * 10) = ln(1 + 1/e) = .3133."""
    got = frame(-30, -20, 5).iloc[0]
    assert got["reference_margin"] == -10
    assert got["rejected_tail"] == -4
    assert got["needed_loss"] == pytest.approx(math.log(1 + math.exp(-1)))
    assert set(COLUMNS) <= set(got.index)


@pytest.mark.parametrize("start", [-40.0, -3.0, 0.0, 7.0])
def test_the_ranking_flips_exactly_at_that_loss(start):
    """A model whose margin is u has the DPO loss -ln sigmoid(beta (u - start)); u > 0 iff the loss is below."""
    needed = frame(start, 0, 1)["needed_loss"].item()
    for u in (-1e-6, 1e-6):
        loss = math.log(1 + math.exp(-BETA * (u - start)))
        assert (loss < needed) == (u > 0)
    assert (needed < math.log(2)) == (start < 0)  # ln 2 is every pair's loss at the start


def test_a_row_that_was_not_scored_is_nan_and_huge_margins_stay_finite():
    assert frame(np.nan, -1, 5)[["reference_margin", "needed_loss"]].isna().all().all()
    assert frame(0, -1e6, 5)["needed_loss"].item() == pytest.approx(1e5)
    assert frame(-1e6, 0, 5)["needed_loss"].item() == 0.0
