"""APO-zero: a worked value and gradient, exchanged sides, digits far away."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.apo_zero import apo_zero


def test_worked_value_and_gradient(worked):
    """1 - sigmoid(0.1) + sigmoid(-0.2) = 0.4750208 + 0.4501660; slopes -0.1 s (1 - s) and 0.1 s (1 - s) of each."""
    output = apo_zero(worked)
    assert output.losses.tolist() == pytest.approx([0.9251868152085821], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    slope = {x: 0.1 / (1 + math.exp(x)) / (1 + math.exp(-x)) for x in (0.1, -0.2)}
    assert chosen.tolist() == [pytest.approx([-slope[0.1]] * 2, abs=1e-15)]
    assert rejected.tolist() == [pytest.approx([slope[-0.2]] * 3, abs=1e-15)]


def test_exchanged_sides_add_up_to_2(random_pair):
    p = random_pair
    back = apo_zero(PairStats(p.rejected, p.chosen, p.ref_rejected, p.ref_chosen), beta=0.7)
    both = (apo_zero(p, beta=0.7).losses + back.losses).detach()
    torch.testing.assert_close(both, torch.full((4,), 2.0, dtype=torch.float64), rtol=0, atol=1e-12)


def test_is_1_where_policy_is_the_reference_and_1_minus_sigmoid_keeps_its_digits(random_pair, make_pair):
    same = PairStats(random_pair.chosen, random_pair.rejected, random_pair.chosen, random_pair.rejected)
    assert apo_zero(same).losses.tolist() == [1.0] * 4
    far = make_pair([[400.0]], [[-500.0]], [[0.0]], [[0.0]])
    assert apo_zero(far).losses.item() == pytest.approx(math.exp(-40) + math.exp(-50), rel=1e-12, abs=0)


def test_a_wrong_beta_is_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        apo_zero(worked, beta=0)
