"""MADPO: worked weights, DPO at a factor of 1, the weight's shape, no gradient through scores."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.madpo import madpo


def scored(pair: PairStats, *margins: float) -> PairStats:
    """Columns whose difference is the margin."""
    low = torch.full((len(margins),), 0.25, dtype=torch.float64)
    return replace(
        pair, columns={"chosen_score": low + torch.tensor(margins, dtype=torch.float64), "rejected_score": low}
    )


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0.5, 0.6084621209522031), (-0.5, 0.4651480863187459), (3.0, 0.5238592351734127), (-3.0, 0.5543552444685271)],
)
def test_worked_values(worked, margin, expected):
    """DPO 0.5543552; c = 0.5 + 1.5 / (1 + 2 e^(|h| - 2)), weight sigmoid(c h) / sigmoid(h).

    |h| = 0.5: c = 1.5371577, weights 1.0976033 and, at -0.5, 0.8390794. h = 3: c = 0.7330436, weight 0.9449883.
    h = -3 is not above -tau: weight 1.
    """
    output = madpo(scored(worked, margin))
    assert output.losses.tolist() == pytest.approx([expected], abs=1e-13)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_worked_value_of_other_settings(worked):
    """h = 0.5, c_max 3, slope 2, tau 1: c = 1/3 + 8/3 / (1 + 2 / (2/3) * e^-1) = 1.6009784, weight 1.1086333."""
    output = madpo(scored(worked, 0.5), c_max=3.0, slope=2.0, tau=1.0)
    assert output.losses.tolist() == pytest.approx([0.6145766570499748], abs=1e-13)


def test_is_dpo_at_a_factor_of_1(random_pair):
    """c = 1 for every pair where c_max is 1, and where |h| is tau."""
    for pair, c_max in ((scored(random_pair, -1.0, 0.0, 0.3, 50.0), 1), (scored(random_pair, *[2.0] * 4), 2)):
        for value, other in zip(madpo(pair, c_max=c_max), dpo(pair), strict=True):
            torch.testing.assert_close(value, other, rtol=1e-12, atol=0)


def test_weights_amplify_small_margins_and_damp_large_ones(random_pair):
    weights = madpo(scored(random_pair, 0.1, 1.9, 2.1, 5.0)).losses / dpo(random_pair).losses
    assert (weights > 1).tolist() == [True, True, False, False]


def test_extreme_scores_stay_finite(random_pair):
    losses = madpo(scored(random_pair, 1e4, -1e4, 1e6, -1e6)).losses
    torch.testing.assert_close(losses, dpo(random_pair).losses, rtol=1e-12, atol=0)


def test_wrong_hyperparameters_are_refused_by_name(worked):
    for wrong in ({"beta": 0}, {"slope": 0}, {"tau": 0}, {"c_max": 0.5}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is "):
            madpo(scored(worked, 1.0), **wrong)
