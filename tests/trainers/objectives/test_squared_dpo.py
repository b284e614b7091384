"""SquaredPO: a worked value, where its pull on the chosen answer ends, near the reference, far away."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.dpo import dpo
from trainers.objectives.squared_dpo import squared_dpo


def test_worked_value(worked):
    """1 e^-1 + 2 e^2 = 0.3678794 + 14.7781122 = 15.1459916; log(1 + e^-1.5145992) = 0.1987659."""
    output = squared_dpo(worked)
    assert output.losses.tolist() == pytest.approx([0.19876586297182183], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


@pytest.mark.parametrize(("u", "sign"), [(-2.0, -1), (0.5, -1), (1.0, 0), (1.5, 1)])
def test_the_chosen_answer_is_pulled_to_e_times_its_reference_probability(make_pair, u, sign):
    """The slope of u e^-u is (1 - u) e^-u: up below u = 1, none there, down above."""
    pair = make_pair([[-3.0 + u]], [[-2.0]], [[-3.0]], [[-2.0]])
    (gradient,) = torch.autograd.grad(squared_dpo(pair).losses.sum(), pair.chosen.per_token_logps)
    expected = -0.1 * (1 - u) * math.exp(-u) / (1 + math.exp(0.1 * u * math.exp(-u)))
    assert gradient.item() == pytest.approx(expected, abs=1e-14)
    assert math.copysign(1, expected) == sign or sign == 0 == expected


def test_has_the_gradient_of_dpo_where_policy_is_the_reference(make_pair):
    sides = [[-1.0, -2.0], [-3.0]], [[-2.0], [-1.0, -0.5]]
    pair = make_pair(*sides, *sides)
    for chosen in (pair.chosen.per_token_logps, pair.rejected.per_token_logps):
        gradients = [torch.autograd.grad(f(pair, beta=0.3).losses.sum(), chosen)[0] for f in (squared_dpo, dpo)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)


def test_a_chosen_answer_far_below_the_reference_is_still_pulled_up(make_pair):
    """u = -100: the score is -100 e^80, its slope e^80 with the exponent clamped."""
    pair = make_pair([[-101.0]], [[-2.0]], [[-1.0]], [[-2.0]])
    losses = squared_dpo(pair).losses
    (gradient,) = torch.autograd.grad(losses.sum(), pair.chosen.per_token_logps)
    assert losses.item() == pytest.approx(10 * math.exp(80), rel=1e-12)
    assert gradient.item() == pytest.approx(-0.1 * math.exp(80), rel=1e-12)


def test_a_beta_of_zero_is_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        squared_dpo(worked, beta=0)
