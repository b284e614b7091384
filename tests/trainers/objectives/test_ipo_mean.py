"""IPO per token: a worked value, where it equals IPO on sums, empty completions, gradient."""

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.ipo_mean import ipo_mean
from trainers.objectives.ipo_sum import ipo_sum


def test_worked_value_and_gradient(worked):
    """u / 2 - v / 3 = 1/2 + 2/3 = 7/6, target 5: (7/6 - 30/6)^2 = (23/6)^2 = 529/36.

    Slope in the margin 2 * -23/6 = -23/3; a chosen token gets 1/2 of it, a rejected token -1/3.
    Rewards stay on sums: 0.1 * 1 and 0.1 * -2.
    """
    output = ipo_mean(worked, tau=0.1)
    assert output.losses.tolist() == pytest.approx([529 / 36], abs=1e-13)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    assert chosen.tolist() == [pytest.approx([-23 / 6] * 2, abs=1e-14)]
    assert rejected.tolist() == [pytest.approx([23 / 9] * 3, abs=1e-14)]


def test_equals_ipo_sum_when_both_completions_have_one_token(make_pair):
    pair = make_pair([[-1.0], [-4.0]], [[-2.0], [-0.5]], [[-0.3], [-9.0]], [[-7.0], [-0.1]])
    for value, other in zip(ipo_mean(pair, tau=0.3), ipo_sum(pair, tau=0.3), strict=True):
        assert value.tolist() == other.tolist()


def test_with_equal_lengths_n_it_is_ipo_sum_at_n_times_tau(make_pair):
    """(d/n - 1/(2 tau))^2 = (d - 1/(2 tau/n))^2 / n^2; n = 3."""
    pair = make_pair([[-1.0, -2.0, -0.2]], [[-3.0, -1.0, -1.0]], [[-0.5, -0.5, -4.0]], [[-1.0, -1.0, -2.5]])
    expected = ipo_sum(pair, tau=0.2 / 3).losses / 9
    torch.testing.assert_close(ipo_mean(pair, tau=0.2).losses, expected, rtol=1e-12, atol=0)


def test_repeating_every_token_changes_no_loss(make_pair):
    sides = [[-1.0, -2.0]], [[-2.0, -1.0, -3.0]], [[-1.5, -2.5]], [[-1.0, -1.0, -2.0]]
    once, twice = make_pair(*sides), make_pair(*([side[0] * 2] for side in sides))
    torch.testing.assert_close(ipo_mean(once).losses, ipo_mean(twice).losses, rtol=1e-14, atol=0)


def test_squared_target_where_policy_is_the_reference(random_pair):
    """(0 - 1 / (2 * 0.25))^2 = 4."""
    same = PairStats(random_pair.chosen, random_pair.rejected, random_pair.chosen, random_pair.rejected)
    assert ipo_mean(same, tau=0.25).losses.tolist() == [4.0] * 4


def test_an_empty_completion_gives_nan_for_its_pair_alone(make_pair):
    flat = [[-1.0], [-1.0]]
    for sides in (([[], [-1.0]], flat, [[], [-1.0]], flat), (flat, [[], [-1.0]], flat, [[], [-1.0]])):
        assert ipo_mean(make_pair(*sides)).losses.isnan().tolist() == [True, False]


def test_gradient_check(random_pair, check_gradient):
    assert check_gradient(ipo_mean, random_pair, tau=0.3)


def test_a_tau_of_zero_is_refused_by_name(worked):
    with pytest.raises(UserError, match="tau is 0"):
        ipo_mean(worked, tau=0)
