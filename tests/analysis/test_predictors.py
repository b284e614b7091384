import math

import numpy as np
import pandas as pd
import pytest

from analysis import predictors


def _pairs(n: int = 60, length_matters: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    length = rng.integers(-20, 20, n).astype(float)
    ches = length + rng.normal(scale=2.0, size=n)
    change = -length_matters * length - (1 - length_matters) * rng.normal(size=n)
    frame = pd.DataFrame(dict(pair_id=[f"p{i}" for i in range(n)], chosen_change=change, start_ches_score=ches))
    return frame.assign(chosen_length=20.0, rejected_length=20.0 + length, start_ln_ches_score=math.nan)


def test_displacement_is_the_likelihood_lost():
    table = predictors.table(_pairs().assign(chosen_change=-3.0))
    assert set(table["displacement"]) == {3.0}
    assert set(table["displacement_per_token"]) == {0.15}


def test_scorecard_shows_the_length_confound():
    """CHES here is length plus noise: it predicts well, and holds nothing once the length difference is fixed."""
    card = predictors.scorecard(predictors.table(_pairs(length_matters=0.9))).set_index("measure")
    assert card.loc["ches_score", "spearman"] > 0.9
    assert card.loc["ches_score", "with_length"] > 0.9
    assert abs(card.loc["ches_score", "given_length"]) < 0.35
    assert card.loc["length_difference", "spearman"] > card.loc["ches_score", "spearman"]


def test_unmeasured_measures_are_nan_with_no_rows():
    card = predictors.scorecard(predictors.table(_pairs())).set_index("measure")
    assert card.loc["ln_ches_score", "n"] == 0
    assert math.isnan(card.loc["ln_ches_score", "spearman"])


@pytest.mark.parametrize(("fallen", "told"), [(0, False), (2, False), (30, True), (58, False)])
def test_auroc_is_refused_when_almost_none_or_almost_all_fell(fallen, told):
    pairs = _pairs().assign(chosen_change=[-1.0] * fallen + [1.0] * (60 - fallen))
    card = predictors.scorecard(predictors.table(pairs)).set_index("measure")
    assert math.isnan(card.loc["ches_score", "auroc"]) is not told
