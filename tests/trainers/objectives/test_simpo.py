"""SimPO: a worked value, its identities, no reference, empty completions, gradient."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.simpo import simpo


def test_worked_value_and_gradient(worked):
    """Means -1.5 and -2. beta 2, ratio 0.25 (gamma 0.5): 2 * 0.5 - 0.5 = 0.5.

    Loss log(1 + e^-0.5) = log(1.6065307) = 0.4740770; slope in the mean margin -2 / (1 + e^0.5) = -0.7550813,
    of which a chosen token gets 1/2 and a rejected token -1/3. Rewards 2 * -1.5 and 2 * -2.
    """
    output = simpo(worked, beta=2.0, gamma_beta_ratio=0.25)
    assert output.losses.tolist() == pytest.approx([0.474076984180107], abs=1e-14)
    assert output.chosen_rewards.tolist() == [-3.0]
    assert output.rejected_rewards.tolist() == [-4.0]
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    assert chosen.tolist() == [pytest.approx([-0.37754066879814546] * 2, abs=1e-14)]
    assert rejected.tolist() == [pytest.approx([0.25169377919876364] * 3, abs=1e-14)]


def test_log_2_where_the_margin_per_token_is_the_ratio(worked):
    """Means -1.5 and -2 are 0.5 apart, which is the default ratio: beta * (0.5 - 0.5) = 0."""
    assert simpo(worked).losses.tolist() == [math.log(2)]
    assert simpo(worked, beta=7.0).losses.tolist() == [math.log(2)]


def test_the_reference_is_never_looked_at(worked):
    bare = PairStats(worked.chosen, worked.rejected)
    for value, other in zip(simpo(bare), simpo(worked), strict=True):
        assert value.tolist() == other.tolist()


def test_repeating_every_token_changes_nothing(make_pair):
    once = make_pair([[-1.0, -2.0]], [[-2.0, -1.0, -3.0]])
    twice = make_pair([[-1.0, -2.0] * 2], [[-2.0, -1.0, -3.0] * 2])
    for value, other in zip(simpo(once), simpo(twice), strict=True):
        assert value.tolist() == other.tolist()


def test_exchanging_the_sides_without_gamma_adds_the_reward_margin(random_pair):
    """-log sigmoid(x) + log sigmoid(-x) = -x."""
    there = simpo(random_pair, gamma_beta_ratio=0)
    back = simpo(PairStats(random_pair.rejected, random_pair.chosen), gamma_beta_ratio=0)
    margins = there.chosen_rewards - there.rejected_rewards
    torch.testing.assert_close((there.losses - back.losses).detach(), -margins, rtol=0, atol=1e-14)


def test_an_empty_completion_gives_nan_for_its_pair_alone(make_pair):
    for sides in (([[], [-1.0]], [[-1.0], [-2.0]]), ([[-1.0], [-2.0]], [[], [-1.0]])):
        assert simpo(make_pair(*sides)).losses.isnan().tolist() == [True, False]


def test_gradient_check(random_pair, check_gradient):
    assert check_gradient(simpo, random_pair, beta=2.0, gamma_beta_ratio=0.3)


def test_wrong_hyperparameters_are_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        simpo(worked, beta=0)
    with pytest.raises(UserError, match=r"gamma_beta_ratio is -0\.5"):
        simpo(worked, gamma_beta_ratio=-0.5)
