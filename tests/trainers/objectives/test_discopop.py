"""DiscoPOP: a worked value, the two losses it is made of, where it is not convex, the clamp."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.discopop import discopop
from trainers.objectives.dpo import dpo


def at(make_pair, *margins: float) -> PairStats:
    flat = [[0.0]] * len(margins)
    return make_pair([[margin] for margin in margins], flat, flat, flat)


def slope(losses, pair):
    (chosen,) = torch.autograd.grad(losses.sum(), pair.chosen.per_token_logps)
    return chosen.flatten().tolist()


def test_worked_value(worked):
    """x = 0.05 * 3, m = sigmoid(3) = 0.9525741: 0.0474259 * log(1 + e^-0.15) + 0.9525741 * e^-0.15."""
    output = discopop(worked)
    assert output.losses.tolist() == pytest.approx([0.8493375792893855], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.05], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.1], abs=1e-15)


def test_m_carries_gradient(make_pair):
    """At x = 0: m = 1/2, dm/dx = 1 / (4 tau); slope beta * [(1 - log 2) / (4 tau) - 1/4 - 1/2] = 0.05 * 0.7842641."""
    pair = at(make_pair, 0.0)
    expected = 0.05 * ((1 - math.log(2)) / (4 * 0.05) - 0.75)
    assert slope(discopop(pair).losses, pair) == [pytest.approx(expected, abs=1e-15)]


def test_is_halfway_between_the_logistic_and_the_exponential_loss_at_0(random_pair):
    same = PairStats(random_pair.chosen, random_pair.rejected, random_pair.chosen, random_pair.rejected)
    assert discopop(same).losses.tolist() == pytest.approx([(math.log(2) + 1) / 2] * 4, abs=1e-15)


def test_is_dpo_for_clearly_wrong_pairs_and_exponential_for_clearly_right_ones(make_pair):
    wrong, right = at(make_pair, -100.0, -300.0), at(make_pair, 100.0, 300.0)
    torch.testing.assert_close(discopop(wrong), dpo(wrong, beta=0.05), rtol=0, atol=1e-12)
    assert discopop(right).losses.tolist() == pytest.approx([math.exp(-5), math.exp(-15)], rel=1e-12)


def test_rises_between_its_local_minimum_and_maximum(make_pair):
    """The paper's stationary margins at its defaults: -2.3714 and 1.44012."""
    pair = at(make_pair, -2.39, -2.35, 0.0, 1.42, 1.46)
    assert [value > 0 for value in slope(discopop(pair).losses, pair)] == [False, True, True, True, False]
    still = at(make_pair, -2.371397853740971, 1.4401222759064138)
    assert slope(discopop(still).losses, still) == pytest.approx([0.0, 0.0], abs=1e-9)


def test_with_tau_above_1_the_exponential_term_stays_from_e_80_on(make_pair):
    """tau 2: the exponent is about |x| / 2, so 80 at x = -160; beta 1. What is left of the slope is O(|x|)."""
    near, far = at(make_pair, -150.0), at(make_pair, -170.0)
    assert discopop(near, beta=1.0, tau=2.0).losses.item() == pytest.approx(math.exp(75), rel=1e-12)
    losses = discopop(far, beta=1.0, tau=2.0).losses
    assert losses.item() == pytest.approx(math.exp(80), rel=1e-12)
    assert abs(slope(losses, far)[0]) < 2


@pytest.mark.parametrize(("name", "value"), [("beta", 0), ("tau", 0)])
def test_wrong_hyperparameters_are_refused_by_name(worked, name, value):
    with pytest.raises(UserError, match=f"{name} is"):
        discopop(worked, **{name: value})
