"""ARPO: a worked value, the gradient through its adaptive strength, CPO where that is 1."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.arpo import arpo
from trainers.objectives.cpo import cpo


def slopes(losses, pair):
    return torch.autograd.grad(losses.sum(), (pair.chosen.per_token_logps, pair.rejected.per_token_logps))


def test_worked_value(worked):
    """Means 0.5 apart: z = 0.9 * e^0.2 - 1 = 0.0992625; 0.1 * (-3 + 6 z) = -0.2404425, loss 0.8205777, plus 1.5."""
    output = arpo(worked)
    assert output.losses.tolist() == pytest.approx([2.320577669972974], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.3], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.6], abs=1e-15)


def test_z_carries_gradient(worked):
    """With s = -0.1 * sigmoid(0.2404425) = -0.0559823 and dz/d(gap) = 0.4 * 1.0992625 = 0.4397050:

    a chosen token gets s * (1 + 6 * 0.4397050 / 2) - 1/2, a rejected one s * (-z - 6 * 0.4397050 / 3).
    A detached z would give -0.5559823 and 0.0055569.
    """
    chosen, rejected = slopes(arpo(worked).losses, worked)
    assert chosen.tolist() == [pytest.approx([-0.6298293200152267] * 2, abs=1e-14)]
    assert rejected.tolist() == [pytest.approx([0.05478830598196244] * 3, abs=1e-14)]


@pytest.mark.parametrize(("chosen", "rejected"), [(-1.0, -3.1), (-3.1, -1.0), (-1e-3, -1e4)])
def test_is_cpo_where_the_means_are_two_nats_apart(make_pair, chosen, rejected):
    """log(2 / 0.9) / 0.4 = 1.996."""
    pair = make_pair([[chosen, chosen]], [[rejected]])
    ours, plain = arpo(pair, beta=0.3, alpha=0.5), cpo(pair, beta=0.3, alpha=0.5)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(slopes(ours.losses, pair), slopes(plain.losses, pair), rtol=0, atol=1e-12)


def test_equal_means_turn_the_sign_of_the_rejected_term(make_pair):
    """z = 0.9 - 1 = -0.1: 0.1 * (-2 - 0.1 * 4) = -0.24."""
    losses = arpo(make_pair([[-2.0]], [[-2.0, -2.0]]), alpha=0).losses
    assert losses.item() == pytest.approx(math.log1p(math.exp(0.24)), abs=1e-14)


def test_batch_token_mean_is_the_mean_over_all_chosen_tokens_of_the_batch(make_pair):
    """3 and 4 nats in 3 tokens of 2 pairs: 3 * 2/3 = 2 and 4 * 2/3 = 8/3; each pair's own mean is 1.5 and 4."""
    pair = make_pair([[-1.0, -2.0], [-4.0]], [[-3.0], [-4.0]])
    for normalization, nll in (("batch_token_mean", [2.0, 8 / 3]), ("sequence_mean", [1.5, 4.0])):
        added = arpo(pair, normalization=normalization).losses - arpo(pair, alpha=0).losses
        assert added.tolist() == pytest.approx(nll, abs=1e-12)


def test_no_reference_is_read_and_an_empty_completion_gives_nan(make_pair, worked):
    assert arpo(PairStats(worked.chosen, worked.rejected)).losses.tolist() == arpo(worked).losses.tolist()
    assert arpo(make_pair([[-1.0], [-1.0]], [[], [-2.0]])).losses.isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta", 0),
        ("alpha", -1),
        ("relax_coefficient_1", -1),
        ("relax_coefficient_2", math.nan),
        ("normalization", "sum"),
    ],
)
def test_wrong_hyperparameters_are_refused_by_name(worked, name, value):
    with pytest.raises(UserError, match=f"{name} is"):
        arpo(worked, **{name: value})
