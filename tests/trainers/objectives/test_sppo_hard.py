"""SPPO with hard labels: a worked value and gradient, its absolute targets, twice the authors' scale."""

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.sppo_hard import sppo_hard


def test_worked_value_and_gradient(worked):
    """beta 0.1, target 5: (1 - 5)^2 + (-2 + 5)^2 = 25; slopes 2 * -4 and 2 * 3."""
    output = sppo_hard(worked, beta=0.1)
    assert output.losses.tolist() == pytest.approx([25.0], abs=1e-12)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    assert chosen.tolist() == [pytest.approx([-8.0] * 2, abs=1e-12)]
    assert rejected.tolist() == [pytest.approx([6.0] * 3, abs=1e-12)]


def test_default_targets_are_500_nats(worked):
    """(1 - 500)^2 + (-2 + 500)^2 = 249001 + 248004."""
    assert sppo_hard(worked).losses.tolist() == pytest.approx([497005.0], abs=1e-9)


def test_is_twice_the_authors_loss_at_win_probabilities_1_and_0(random_pair):
    p, beta = random_pair, 0.05
    assert p.ref_chosen is not None
    assert p.ref_rejected is not None
    u, v = p.chosen.logps - p.ref_chosen.logps, p.rejected.logps - p.ref_rejected.logps
    authors = 0.5 * ((u - (1 - 0.5) / beta) ** 2 + (v - (0 - 0.5) / beta) ** 2)
    torch.testing.assert_close(sppo_hard(p, beta=beta).losses, 2 * authors, rtol=1e-12, atol=0)


def test_nothing_is_left_at_the_targets_alone(make_pair):
    """beta 0.25: targets 2 and -2. The same margin 4 from 3 and -1 costs 1 + 1."""
    flat = [[0.0]] * 2
    pair = make_pair([[2.0], [3.0]], [[-2.0], [-1.0]], flat, flat)
    assert sppo_hard(pair, beta=0.25).losses.tolist() == [0.0, 2.0]


def test_a_wrong_beta_is_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        sppo_hard(worked, beta=0)
