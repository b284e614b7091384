"""ASFT: a worked value, both ways to write it, its place above ORPO, sides that do not touch each other."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.asft import asft
from trainers.objectives.orpo import orpo


def slopes(losses, pair):
    return torch.autograd.grad(losses.sum(), (pair.chosen.per_token_logps, pair.rejected.per_token_logps))


def test_worked_value_and_gradient(worked):
    """1.1 * 1.5 - 0.1 * log(1 - e^-2) = 1.65 + 0.1 * 0.1454135.

    A chosen token gets -1.1 / 2, a rejected one 0.1 * e^-2 / (1 - e^-2) / 3 = 0.1 / (e^2 - 1) / 3.
    """
    output = asft(worked, beta=0.1)
    assert output.losses.tolist() == pytest.approx([1.664541345786886], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.15], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    chosen, rejected = slopes(output.losses, worked)
    assert chosen.tolist() == [pytest.approx([-0.55] * 2, abs=1e-15)]
    assert rejected.tolist() == [pytest.approx([0.1 / (math.exp(2) - 1) / 3] * 3, abs=1e-15)]


def test_equals_the_form_with_two_sigmoids(random_pair):
    p = random_pair
    w, r = (side.avg_logps.detach() for side in (p.chosen, p.rejected))
    odds_w, odds_r = w - torch.log(1 - w.exp()), r - torch.log(1 - r.exp())
    expected = -w - 0.7 * (logsigmoid(odds_w) + logsigmoid(-odds_r))
    torch.testing.assert_close(asft(p, beta=0.7).losses.detach(), expected, rtol=0, atol=1e-12)


def test_its_aligning_part_is_never_less_than_that_of_orpo(random_pair, make_pair):
    for pair in (random_pair, make_pair([[-1e-9], [-50.0]], [[-1e-9], [-1e-9]])):
        assert (asft(pair, beta=1.0).losses >= orpo(pair, beta=1.0).losses).all()
        torch.testing.assert_close(asft(pair, beta=0).losses, orpo(pair, beta=0).losses)


@pytest.mark.parametrize("p", [-1e-9, -40.0, -700.0])
def test_the_rejected_term_keeps_its_digits(make_pair, p):
    """-log(1 - e^p) is log(1 / -p) near 0 and e^p far below, where 1 - e^p rounds to 1."""
    pair = make_pair([[0.0]], [[p]])
    losses = asft(pair, beta=1.0).losses
    expected = -math.log(-math.expm1(p)) if p > -1 else math.exp(p)
    assert losses.item() == pytest.approx(expected, rel=1e-12, abs=0)
    assert slopes(losses, pair)[1].item() == pytest.approx(math.exp(p) / -math.expm1(p), rel=1e-12, abs=0)


def test_a_certain_rejected_answer_has_a_finite_loss(make_pair):
    pair = make_pair([[-1.0]], [[0.0]])
    assert asft(pair).losses.isfinite().all()
    assert all(slope.isfinite().all() for slope in slopes(asft(pair).losses, pair))


def test_an_empty_completion_gives_nan_for_its_pair_alone_and_no_reference_is_read(make_pair, worked):
    assert asft(make_pair([[-1.0], [-1.0]], [[], [-2.0]])).losses.isnan().tolist() == [True, False]
    assert asft(PairStats(worked.chosen, worked.rejected)).losses.tolist() == asft(worked).losses.tolist()


def test_a_wrong_beta_is_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is -1"):
        asft(worked, beta=-1)
