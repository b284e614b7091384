"""SLiC: a worked value and gradient, its margin, the likelihood term, how it relates to the hinge."""

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.hinge import hinge
from trainers.objectives.slic import slic


def slopes(losses, pair):
    return torch.autograd.grad(losses.sum(), (pair.chosen.per_token_logps, pair.rejected.per_token_logps))


def test_worked_value_and_gradient(worked):
    """delta 4: 4 + 3 - 6 = 1, plus 0.1 * 3; a chosen token gets -1 - 0.1, a rejected one 1. Rewards are log-probs."""
    output = slic(worked, delta=4.0, alpha=0.1)
    assert output.losses.tolist() == pytest.approx([1.3], abs=1e-14)
    assert output.chosen_rewards.tolist() == [-3.0]
    assert output.rejected_rewards.tolist() == [-6.0]
    chosen, rejected = slopes(output.losses, worked)
    assert chosen.tolist() == [pytest.approx([-1.1] * 2, abs=1e-15)]
    assert rejected.tolist() == [[1.0] * 3]


def test_past_the_margin_only_the_likelihood_of_the_chosen_is_left(worked):
    """Defaults: margin 3 is over delta 1, so 0 + 0.1 * 3."""
    losses = slic(worked).losses
    assert losses.tolist() == pytest.approx([0.3], abs=1e-15)
    chosen, rejected = slopes(losses, worked)
    assert chosen.tolist() == [pytest.approx([-0.1] * 2, abs=1e-16)]
    assert rejected.tolist() == [[0.0] * 3]


def test_default_margin_is_one_nat(worked):
    """Sides exchanged: 1 + 6 - 3 = 4, plus 0.1 * 6."""
    assert slic(PairStats(worked.rejected, worked.chosen)).losses.tolist() == pytest.approx([4.6], abs=1e-14)


def test_is_delta_times_a_hinge_at_a_flat_reference_without_likelihood(make_pair):
    """[delta - D]+ = delta * [1 - D / delta]+, with u = P where the reference's log-probs are 0."""
    pair = make_pair([[-1.0], [-4.0]], [[-2.0], [-0.5]], [[0.0], [0.0]], [[0.0], [0.0]])
    expected = 1.5 * hinge(pair, beta=1 / 1.5).losses
    torch.testing.assert_close(slic(pair, delta=1.5, alpha=0).losses, expected, rtol=0, atol=1e-12)


def test_the_reference_is_never_looked_at(worked):
    assert slic(PairStats(worked.chosen, worked.rejected)).losses.tolist() == slic(worked).losses.tolist()


def test_wrong_hyperparameters_are_refused_by_name(worked):
    with pytest.raises(UserError, match="delta is -1"):
        slic(worked, delta=-1)
    with pytest.raises(UserError, match="alpha is -1"):
        slic(worked, alpha=-1)
