"""AlphaPO: a worked value, its limit SimPO, the shapes of its reward, the clamp."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.alphapo import alphapo
from trainers.objectives.simpo import simpo


def slopes(losses, pair):
    return torch.autograd.grad(losses.sum(), (pair.chosen.per_token_logps, pair.rejected.per_token_logps))


def test_worked_value(worked):
    """Means -1.5 and -2, alpha 1/4: r = 4 * (1 - e^0.375) = -1.8199657 and 4 * (1 - e^0.5) = -2.5948851.

    2.5 * 0.7749194 - 0.1 = 1.8372985, log(1 + e^-1.8372985) = 0.1477707. Rewards 2.5 * r.
    """
    output = alphapo(worked)
    assert output.losses.tolist() == pytest.approx([0.14777069242367033], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([-4.5499141461820125], abs=1e-13)
    assert output.rejected_rewards.tolist() == pytest.approx([-6.487212707001282], abs=1e-13)


def test_alpha_0_is_simpo_in_value_and_gradient_and_small_alpha_tends_to_it(random_pair):
    plain = simpo(random_pair, beta=2.0, gamma_beta_ratio=0.3)
    ours = alphapo(random_pair, beta=2.0, gamma=0.6, alpha=0.0)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(slopes(ours.losses, random_pair), slopes(plain.losses, random_pair), rtol=0, atol=1e-12)
    for alpha in (1e-12, -1e-12):  # 1 - exp(1e-12 * p) would be left with four digits
        near = alphapo(random_pair, beta=2.0, gamma=0.6, alpha=alpha)
        torch.testing.assert_close(near, plain, rtol=0, atol=1e-10)


def test_alpha_minus_1_rewards_probability_and_alpha_1_minus_its_inverse(make_pair):
    """Probabilities per token 1/2 and 1/4: exp(p) - 1 = -1/2 and -3/4; 1 - exp(-p) = -1 and -3."""
    pair = make_pair([[math.log(0.5)]], [[math.log(0.25)]])
    for alpha, rewards in ((-1.0, [-0.5, -0.75]), (1.0, [-1.0, -3.0])):
        output = alphapo(pair, beta=1.0, gamma=0.0, alpha=alpha)
        found = [output.chosen_rewards.item(), output.rejected_rewards.item()]
        assert found == pytest.approx(rewards, abs=1e-15)
        assert output.losses.item() == pytest.approx(math.log1p(math.exp(rewards[1] - rewards[0])), abs=1e-14)


def test_the_reward_stays_where_its_exponent_passes_80(make_pair):
    """alpha 0.25: 80 is reached at -320 nats per token; r = -4 * (e^80 - 1) there and beyond, without gradient."""
    pair = make_pair([[-319.0], [-321.0]], [[-1.0], [-1.0]])
    output = alphapo(pair, beta=1.0)
    rewards = [-4 * math.expm1(79.75), -4 * math.expm1(80)]
    assert output.chosen_rewards.tolist() == pytest.approx(rewards, rel=1e-12)
    chosen, _ = slopes(output.losses, pair)
    assert chosen.flatten().tolist() == [pytest.approx(-math.exp(79.75), rel=1e-12), 0.0]


def test_an_empty_completion_gives_nan_for_its_pair_alone_and_no_reference_is_read(make_pair, worked):
    assert alphapo(make_pair([[], [-1.0]], [[-1.0], [-2.0]])).losses.isnan().tolist() == [True, False]
    assert alphapo(PairStats(worked.chosen, worked.rejected)).losses.tolist() == alphapo(worked).losses.tolist()


@pytest.mark.parametrize(("name", "value"), [("beta", 0), ("gamma", -0.1), ("alpha", math.nan), ("alpha", math.inf)])
def test_wrong_hyperparameters_are_refused_by_name(worked, name, value):
    with pytest.raises(UserError, match=f"{name} is"):
        alphapo(worked, **{name: value})
