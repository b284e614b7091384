"""Hinge: a worked value and gradient, where it stops."""

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.hinge import hinge


def test_worked_value_and_gradient(worked):
    """1 - 0.05 * 3 = 0.85; a chosen token gets -0.05, a rejected one 0.05; rewards 0.05 * 1 and 0.05 * -2."""
    output = hinge(worked)
    assert output.losses.tolist() == pytest.approx([0.85], abs=1e-15)
    assert output.chosen_rewards.tolist() == pytest.approx([0.05], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.1], abs=1e-15)
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    assert chosen.tolist() == [pytest.approx([-0.05] * 2, abs=1e-16)]
    assert rejected.tolist() == [pytest.approx([0.05] * 3, abs=1e-16)]


def test_stops_at_the_margin_1_over_beta(make_pair):
    """beta 0.25: target 4. Margins 3, 5 and -1 give 0.25, 0 and 1.25, and no gradient past the target."""
    flat = [[0.0]] * 3
    pair = make_pair([[3.0], [5.0], [-1.0]], flat, flat, flat)
    losses = hinge(pair, beta=0.25).losses
    assert losses.tolist() == [0.25, 0.0, 1.25]
    (slope,) = torch.autograd.grad(losses.sum(), pair.chosen.per_token_logps)
    assert slope.tolist() == [[-0.25], [0.0], [-0.25]]


def test_is_1_where_policy_is_the_reference(random_pair):
    same = PairStats(random_pair.chosen, random_pair.rejected, random_pair.chosen, random_pair.rejected)
    assert hinge(same, beta=3.0).losses.tolist() == [1.0] * 4


@pytest.mark.parametrize("beta", [0, -0.1])
def test_a_wrong_beta_is_refused_by_name(worked, beta):
    with pytest.raises(UserError, match="beta is"):
        hinge(worked, beta=beta)
