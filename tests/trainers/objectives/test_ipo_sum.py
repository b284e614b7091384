"""IPO on sums: a worked value, its target, identities, gradient."""

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.ipo_sum import ipo_sum


def test_worked_value_and_gradient(worked):
    """u - v = 1 - -2 = 3, target 1 / (2 * 0.1) = 5: (3 - 5)^2 = 4, slope 2 * (3 - 5) = -4 in the margin."""
    output = ipo_sum(worked, tau=0.1)
    assert output.losses.tolist() == pytest.approx([4.0], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    assert chosen.tolist() == [pytest.approx([-4.0] * 2, abs=1e-14)]
    assert rejected.tolist() == [pytest.approx([4.0] * 3, abs=1e-14)]


def test_squared_target_where_policy_is_the_reference(random_pair):
    """(0 - 1 / (2 * 0.25))^2 = 4."""
    same = PairStats(random_pair.chosen, random_pair.rejected, random_pair.chosen, random_pair.rejected)
    assert ipo_sum(same, tau=0.25).losses.tolist() == [4.0] * 4


def test_no_loss_at_the_target_and_equal_loss_on_both_sides_of_it(make_pair):
    """tau 0.25: target 2. Margins 2, 5 and -1 give 0, 9 and 9: overshooting costs as much as falling short."""
    flat = [[0.0]] * 3
    pair = make_pair([[2.0], [5.0], [-1.0]], flat, flat, flat)
    assert ipo_sum(pair, tau=0.25).losses.tolist() == [0.0, 9.0, 9.0]


def test_exchanging_the_sides_adds_twice_the_margin_over_tau(random_pair):
    """(d - c)^2 - (-d - c)^2 = -4 c d, with c = 1 / (2 tau): -2 d / tau."""
    p, tau = random_pair, 0.2
    there, back = ipo_sum(p, tau=tau), ipo_sum(PairStats(p.rejected, p.chosen, p.ref_rejected, p.ref_chosen), tau=tau)
    margins = (there.chosen_rewards - there.rejected_rewards) / tau
    torch.testing.assert_close((there.losses - back.losses).detach(), -2 * margins / tau, rtol=1e-12, atol=1e-12)


def test_gradient_check(random_pair, check_gradient):
    assert check_gradient(ipo_sum, random_pair, tau=0.3)


def test_a_tau_of_zero_is_refused_by_name(worked):
    with pytest.raises(UserError, match="tau is 0"):
        ipo_sum(worked, tau=0)
