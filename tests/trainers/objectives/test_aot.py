"""AOT: sorted margins by hand, smoothing, one pair, quantiles and rows."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.aot import aot
from trainers.objectives.dpo import dpo


def test_worked_value(worked):
    """One pair: m = 3; beta 0.1, smoothing 0.1: 0.9 L(0.3) + 0.1 L(-0.3) = L(0.3) + 0.1 * 0.3 = 0.5843552."""
    output = aot(worked, beta=0.1, label_smoothing=0.1)
    assert output.losses.tolist() == pytest.approx([0.5843552444685272], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_margins_of_policy_and_reference_are_sorted_each_for_itself(make_pair):
    """Policy margins 2, -1, 5 and the reference's 0, 3, -2: sorted -1, 2, 5 less -2, 0, 3 = 1, 2, 2.

    Unsorted they would be 2, -4, 7. Losses stand in the order of quantiles, rewards in that of rows.
    """
    pair = make_pair(
        [[-1.0], [-3.0], [-1.0]], [[-3.0], [-2.0], [-6.0]], [[-2.0], [-1.0], [-4.0]], [[-2.0], [-4.0], [-2.0]]
    )
    output = aot(pair, beta=1.0)
    expected = [math.log1p(math.exp(-m)) for m in (1, 2, 2)]
    assert output.losses.tolist() == pytest.approx(expected, abs=1e-14)
    assert output.chosen_rewards.tolist() == [1.0, -2.0, 3.0]
    assert output.rejected_rewards.tolist() == [-1.0, 2.0, -4.0]


def test_the_gradient_reaches_the_row_that_holds_the_quantile(make_pair):
    """Row 1 has the smallest policy margin and meets the smallest of the reference: m = 1, slope -sigmoid(-1)."""
    pair = make_pair(
        [[-1.0], [-3.0], [-1.0]], [[-3.0], [-2.0], [-6.0]], [[-2.0], [-1.0], [-4.0]], [[-2.0], [-4.0], [-2.0]]
    )
    (gradient,) = torch.autograd.grad(aot(pair, beta=1.0).losses.sum(), pair.chosen.per_token_logps)
    expected = [-1 / (1 + math.exp(m)) for m in (2, 1, 2)]
    assert gradient[:, 0].tolist() == pytest.approx(expected, abs=1e-14)


def test_is_dpo_where_both_models_rank_the_pairs_alike(make_pair):
    """A reference margin of 0 everywhere: quantiles are the pairs' own margins, sorted."""
    pair = make_pair([[-1.0], [-3.0]], [[-3.0], [-2.0]], [[-2.0], [-1.0]], [[-2.0], [-1.0]])
    expected = dpo(pair, beta=0.3).losses.sort(descending=True).values
    torch.testing.assert_close(aot(pair, beta=0.3).losses, expected, rtol=0, atol=1e-14)


def test_log_2_where_policy_is_the_reference(random_pair):
    same = PairStats(random_pair.chosen, random_pair.rejected, random_pair.chosen, random_pair.rejected)
    assert aot(same, label_smoothing=0.2).losses.tolist() == pytest.approx([math.log(2)] * 4, abs=1e-15)


@pytest.mark.parametrize(("name", "value"), [("beta", 0), ("label_smoothing", 0.5), ("label_smoothing", -0.1)])
def test_wrong_hyperparameters_are_refused_by_name(worked, name, value):
    with pytest.raises(UserError, match=f"{name} is {value}"):
        aot(worked, **{name: value})
