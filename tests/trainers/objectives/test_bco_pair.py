"""BCO for pairs: a worked value, its symmetry, what displacement costs."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.bco_pair import bco_pair


def test_worked_value_and_gradient(worked):
    """L(0.1) + L(0.2) = 0.6443967 + 0.5981389 = 1.2425355; slopes -0.1 sigmoid(-0.1) and 0.1 sigmoid(-0.2)."""
    output = bco_pair(worked, beta=0.1)
    assert output.losses.tolist() == pytest.approx([1.2425355294551625], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    assert chosen.tolist() == [pytest.approx([-0.1 / (1 + math.exp(0.1))] * 2, abs=1e-15)]
    assert rejected.tolist() == [pytest.approx([0.1 / (1 + math.exp(0.2))] * 3, abs=1e-15)]


def test_exchanging_the_sides_adds_the_difference_of_rewards(random_pair):
    """L(a) + L(-b) - L(b) - L(-a) = b - a, where L(x) - L(-x) = -x."""
    p = random_pair
    there, back = bco_pair(p), bco_pair(PairStats(p.rejected, p.chosen, p.ref_rejected, p.ref_chosen))
    expected = there.rejected_rewards - there.chosen_rewards
    torch.testing.assert_close((there.losses - back.losses).detach(), expected, rtol=0, atol=1e-14)


def test_the_same_margin_costs_more_where_both_likelihoods_fell(make_pair):
    """Margin 4 as (2, -2) and as (-8, -12), for which DPO's losses are equal."""
    pair = make_pair([[2.0], [-8.0]], [[-2.0], [-12.0]], [[0.0], [0.0]], [[0.0], [0.0]])
    kept, displaced = bco_pair(pair, beta=0.5).losses.tolist()
    assert kept == pytest.approx(2 * math.log1p(math.exp(-1)), abs=1e-14)
    assert displaced == pytest.approx(math.log1p(math.exp(4)) + math.log1p(math.exp(-6)), abs=1e-14)


def test_a_beta_of_zero_is_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        bco_pair(worked, beta=0)
