"""APO-down: a worked value and gradient, both sides go down at the start, digits far away."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.apo_down import apo_down


def slopes(losses, pair):
    return torch.autograd.grad(losses.sum(), (pair.chosen.per_token_logps, pair.rejected.per_token_logps))


def test_worked_value_and_gradient(worked):
    """sigmoid(0.1) + 1 - sigmoid(0.3) = 0.5249792 + 0.4255575; u has 0.1 s (1 - s) of 0.1 less that of 0.3."""
    output = apo_down(worked)
    assert output.losses.tolist() == pytest.approx([0.950536670667281], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    chosen, rejected = slopes(output.losses, worked)
    slope = {x: 0.1 / (1 + math.exp(x)) / (1 + math.exp(-x)) for x in (0.1, 0.3)}
    assert chosen.tolist() == [pytest.approx([slope[0.1] - slope[0.3]] * 2, abs=1e-15)]
    assert rejected.tolist() == [pytest.approx([slope[0.3]] * 3, abs=1e-15)]


def test_with_the_margin_met_the_chosen_answer_is_pushed_down(make_pair):
    """Margin 100 and u = 0: beta / 4 = 0.025 down on chosen, nearly nothing on rejected."""
    pair = make_pair([[0.0]], [[-100.0]], [[0.0]], [[0.0]])
    chosen, rejected = slopes(apo_down(pair).losses, pair)
    assert chosen.item() == pytest.approx(0.025, abs=1e-5)
    assert 0 < rejected.item() < 1e-5


def test_is_1_where_policy_is_the_reference_and_1_minus_sigmoid_keeps_its_digits(random_pair, make_pair):
    same = PairStats(random_pair.chosen, random_pair.rejected, random_pair.chosen, random_pair.rejected)
    assert apo_down(same).losses.tolist() == [1.0] * 4
    far = make_pair([[-500.0]], [[-900.0]], [[0.0]], [[0.0]])
    assert apo_down(far).losses.item() == pytest.approx(math.exp(-50) + math.exp(-40), rel=1e-12, abs=0)


def test_a_wrong_beta_is_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        apo_down(worked, beta=0)
