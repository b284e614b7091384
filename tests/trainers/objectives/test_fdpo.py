"""f-DPO: worked values, where divergences meet, far away, gradient."""

import math
from itertools import product
from typing import get_args

import pytest
import torch

from diagnostics.errors import UserError
from trainers import objectives
from trainers.objectives.dpo import dpo
from trainers.objectives.fdpo import Divergence, fdpo

DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        ("reverse_kl", 0.5543552444685271),
        ("forward_kl", 0.4024838785050576),
        ("js", 0.606569973180952),
        ("alpha", 0.5041057475364682),
    ],
)
def test_worked_values(worked, divergence, expected):
    """u = 1, v = -2; f'(u) - f'(v), times beta 0.1 into log(1 + e^-x).

    reverse_kl 1 + 2 = 3. forward_kl e^2 - e^-1 = 7.0211767. js log sigmoid(1) - log sigmoid(-2) = 1.8136663.
    alpha 0.5: 2 (1 - e^-0.5) - 2 (1 - e^1) = 2 (e - e^-0.5) = 4.2235023.
    """
    output = fdpo(worked, divergence=divergence)
    assert output.losses.tolist() == pytest.approx([expected], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_alpha_is_the_papers_and_not_one_minus_it(worked):
    """alpha 0.75: (e^1.5 - e^-0.75) / 0.75 = 5.3457634. In TRL this is coefficient 0.25."""
    losses = fdpo(worked, divergence="alpha", alpha=0.75).losses
    assert losses.tolist() == pytest.approx([0.4611630852227129], abs=1e-14)


def test_reverse_kl_is_dpo(random_pair):
    for value, other in zip(fdpo(random_pair, beta=0.3), dpo(random_pair, beta=0.3), strict=True):
        assert value.tolist() == other.tolist()


def test_alpha_runs_from_reverse_kl_to_forward_kl(random_pair):
    """At alpha 1 (1 - e^-x) is forward KL up to a constant; at 1e-9 it is x within about 1e-8."""
    one = fdpo(random_pair, divergence="alpha", alpha=1).losses
    torch.testing.assert_close(one, fdpo(random_pair, divergence="forward_kl").losses, rtol=1e-12, atol=0)
    small = fdpo(random_pair, divergence="alpha", alpha=1e-9).losses
    torch.testing.assert_close(small, fdpo(random_pair).losses, rtol=0, atol=1e-7)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_check(random_pair, check_gradient, divergence):
    assert check_gradient(fdpo, random_pair, beta=0.3, divergence=divergence, alpha=0.3)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("far", [-200.0, -1e4])
def test_finite_far_away(make_pair, divergence, far):
    rows = list(product([-1e-3, far], repeat=4))
    pair = make_pair(*([[row[side]] for row in rows] for side in range(4)))
    losses = fdpo(pair, divergence=divergence).losses
    gradients = torch.autograd.grad(losses.sum(), [pair.chosen.per_token_logps, pair.rejected.per_token_logps])
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_forward_kl_stands_still_below_80_nats(make_pair):
    """The slope of f' is e^79.9 at u = -79.9 and 0 at u = -81; beta e^-80 keeps the sigmoid from rounding."""
    for u, moves in ((-79.9, True), (-81.0, False)):
        pair = make_pair([[-1.0 + u]], [[-3.0]], [[-1.0]], [[-1.0]])
        losses = fdpo(pair, beta=math.exp(-80), divergence="forward_kl").losses
        (gradient,) = torch.autograd.grad(losses.sum(), pair.chosen.per_token_logps)
        assert (gradient != 0).tolist() == [[moves]]


def test_wrong_hyperparameters_are_refused_by_name(worked):
    for wrong in ({"beta": 0}, {"alpha": 0}, {"alpha": 1.1}, {"divergence": "kl"}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is "):
            objectives.load("fdpo")(worked, **wrong)
