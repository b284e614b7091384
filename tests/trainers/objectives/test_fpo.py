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
        ("js", 0.5, 0.17638928224316677),
        ("jeffreys", 0.5, 4.127492375297374),
        ("hellinger", 0.5, 0.47541470840332086),
        ("alpha", 0.5, 0.9508294168066417),
        ("alpha", 0.25, 1.5836125064606484),
    ],
)
def test_worked_values(worked, divergence, alpha, expected):
    """beta (u - v) = 0.3: g = (0.5744425, 0.4255575), log g = (-0.5543552, -0.8543552), t = (1, 0.0000454).

    jeffreys: -0.4255575 * -0.5543552 + 0.4255121 * (10 - 0.8543552) = 0.2359100 + 3.8915824 = 4.1274924.
    hellinger: (0.7579199 - 1)^2 + (0.6523477 - 0.0067379)^2 = 0.0586028 + 0.4168119 = 0.4754147.
    """
    output = fpo(worked, divergence=divergence, alpha=alpha)
    assert output.losses.tolist() == pytest.approx([expected], abs=1e-13)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_alpha_one_half_is_twice_the_squared_hellinger_distance(random_pair):
    """-4 sum (sqrt(g t) - g / 2 - t / 2) and sum (g + t - 2 sqrt(g t)), whatever g and t sum to."""
    alpha, hellinger = (fpo(random_pair, divergence=name).losses for name in ("alpha", "hellinger"))
    torch.testing.assert_close(alpha, 2 * hellinger, rtol=1e-12, atol=1e-13)


def test_the_ends_of_alpha_add_up_to_jeffreys(random_pair):
    """KL(g || t) - 1 + sum t towards 0, KL(t || g) + 1 - sum t towards 1: t sums to 1 + e^-10."""
    ends = sum(fpo(random_pair, divergence="alpha", alpha=alpha).losses for alpha in (1e-6, 1 - 1e-6))
    torch.testing.assert_close(ends, fpo(random_pair, divergence="jeffreys").losses, rtol=1e-4, atol=0)
    x = (fpo(random_pair).chosen_rewards - fpo(random_pair).rejected_rewards).tolist()
    g = [1 / (1 + math.exp(-value)) for value in x]
    exo = [a * math.log(a) + (1 - a) * (math.log(1 - a) + 10) + math.exp(-10) for a in g]
    near = fpo(random_pair, divergence="alpha", alpha=1e-7).losses.tolist()
    assert near == pytest.approx(exo, rel=1e-5)


@pytest.mark.parametrize(
    ("divergence", "least"),
    [
        ("js", 2.5763835444534760e-10),
        ("jeffreys", 2.0611068357397835e-09),
        ("hellinger", 5.1527670891282053e-10),
        ("alpha", 1.0305534178256411e-09),
    ],
)
def test_least_with_no_gradient_at_a_reward_margin_of_10(make_pair, divergence, least):
    """There g = t / s with s = 1 + e^-10, so that each is s f(1 / s): jeffreys s (1/s - 1) log(1/s),

    hellinger s (sqrt(1/s) - 1)^2, alpha twice that. Not 0, for t is not normalised.
    """
    pair = make_pair([[-1.0], [-1.0], [-1.0]], [[-7.0], [-6.9], [-7.1]], [[-2.0]] * 3, [[-3.0]] * 3)
    losses = fpo(pair, beta=2.0, divergence=divergence).losses
    (gradient,) = torch.autograd.grad(losses.sum(), pair.chosen.per_token_logps)
    assert losses[0].item() == pytest.approx(least, abs=1e-15)
    assert losses[0] < losses[1:].min()
    assert gradient[0].tolist() == pytest.approx([0.0], abs=1e-14)


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
