"""f-PO: worked values, where divergences meet, the target, far away, gradient."""

import math
from itertools import product
from typing import get_args

import pytest
import torch

from diagnostics.errors import UserError
from trainers import objectives
from trainers.objectives.fpo import Divergence, fpo

DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)


@pytest.mark.parametrize(
    ("divergence", "alpha", "expected"),
    [
        ("js", 0.5, 0.17638386051422023),
        ("jeffreys", 0.5, 4.127467227600494),
        ("hellinger", 0.5, 0.4754039163583207),
        ("alpha", 0.5, 0.9508078327166414),
        ("alpha", 0.25, 1.5835945319659626),
    ],
)
def test_worked_values(worked, divergence, alpha, expected):
    """beta (u - v) = 0.3: g = (0.5744425, 0.4255575), t = (0.9999546, 0.0000454).

    jeffreys: 0.4255121 * (0.3 - 10) with the sign turned twice: 0.4255121 * 9.7 = 4.1274672.
    hellinger: (0.7579199 - 0.9999773)^2 + (0.6523476 - 0.0067378)^2 = 0.0585918 + 0.4168121 = 0.4754039.
    """
    output = fpo(worked, divergence=divergence, alpha=alpha)
    assert output.losses.tolist() == pytest.approx([expected], abs=1e-13)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_alpha_one_half_is_twice_the_squared_hellinger_distance(random_pair):
    """-4 (sum sqrt(g t) - 1) and 2 - 2 sum sqrt(g t)."""
    alpha, hellinger = (fpo(random_pair, divergence=name).losses for name in ("alpha", "hellinger"))
    torch.testing.assert_close(alpha, 2 * hellinger, rtol=1e-12, atol=1e-13)


def test_the_ends_of_alpha_add_up_to_jeffreys(random_pair):
    """KL(g || t) = EXO towards 0, KL(t || g) towards 1."""
    ends = sum(fpo(random_pair, divergence="alpha", alpha=alpha).losses for alpha in (1e-6, 1 - 1e-6))
    torch.testing.assert_close(ends, fpo(random_pair, divergence="jeffreys").losses, rtol=1e-4, atol=0)
    x = (fpo(random_pair).chosen_rewards - fpo(random_pair).rejected_rewards).tolist()
    g, small = [1 / (1 + math.exp(-value)) for value in x], math.exp(-10) / (1 + math.exp(-10))
    exo = [a * math.log(a / (1 - small)) + (1 - a) * math.log((1 - a) / small) for a in g]
    near = fpo(random_pair, divergence="alpha", alpha=1e-7).losses.tolist()
    assert near == pytest.approx(exo, rel=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_0_with_no_gradient_at_a_reward_margin_of_10(make_pair, divergence):
    pair = make_pair([[-1.0]], [[-7.0]], [[-2.0]], [[-3.0]])
    losses = fpo(pair, beta=2.0, divergence=divergence).losses
    (gradient,) = torch.autograd.grad(losses.sum(), pair.chosen.per_token_logps)
    assert losses.tolist() == pytest.approx([0.0], abs=1e-14)
    assert gradient.tolist()[0] == pytest.approx([0.0], abs=1e-14)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_check(random_pair, check_gradient, divergence):
    assert check_gradient(fpo, random_pair, beta=0.3, divergence=divergence, alpha=0.3)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("far", [-200.0, -1e4])
def test_finite_far_away(make_pair, divergence, far):
    rows = list(product([-1e-3, far], repeat=4))
    pair = make_pair(*([[row[side]] for row in rows] for side in range(4)))
    losses = fpo(pair, beta=1.0, divergence=divergence).losses
    gradients = torch.autograd.grad(losses.sum(), [pair.chosen.per_token_logps, pair.rejected.per_token_logps])
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_wrong_hyperparameters_are_refused_by_name(worked):
    for wrong in ({"beta": 0}, {"alpha": 0}, {"alpha": 1}, {"divergence": "kl"}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is "):
            objectives.load("fpo")(worked, **wrong)
