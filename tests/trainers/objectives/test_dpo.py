"""DPO: a worked value, its identities, gradient, a missing reference."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.simpo import simpo


def test_worked_value(worked):
    """u = 1, v = -2, margin 3; beta 0.1: -log sigmoid(0.3) = log(1 + e^-0.3) = log(1.7408182) = 0.5543552."""
    output = dpo(worked, beta=0.1)
    assert output.losses.tolist() == pytest.approx([0.554355244468527], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_worked_gradient(worked):
    """d loss / d margin = -beta * sigmoid(-beta * margin) = -0.1 * 1 / (1 + e^0.3) = -0.0425557.

    Every chosen token gets it, every rejected token its opposite.
    """
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(dpo(worked, beta=0.1).losses.sum(), sides)
    assert chosen.tolist() == [pytest.approx([-0.0425557483188341] * 2, abs=1e-15)]
    assert rejected.tolist() == [pytest.approx([0.0425557483188341] * 3, abs=1e-15)]


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_log_2_and_no_reward_where_policy_is_the_reference(random_pair, beta):
    same = PairStats(random_pair.chosen, random_pair.rejected, random_pair.chosen, random_pair.rejected)
    output = dpo(same, beta=beta)
    assert output.losses.tolist() == [math.log(2)] * 4
    assert output.chosen_rewards.tolist() == output.rejected_rewards.tolist() == [0.0] * 4


def test_exchanging_the_sides_adds_beta_times_the_margin(random_pair):
    """-log sigmoid(x) + log sigmoid(-x) = -x."""
    p = random_pair
    there, back = dpo(p, beta=0.7), dpo(PairStats(p.rejected, p.chosen, p.ref_rejected, p.ref_chosen), beta=0.7)
    margins = there.chosen_rewards - there.rejected_rewards
    torch.testing.assert_close((there.losses - back.losses).detach(), -margins, rtol=0, atol=1e-14)


def test_equals_simpo_for_single_tokens_a_flat_reference_and_no_gamma(make_pair):
    """With reference log-probs of 0 and lengths of 1, log-ratios are mean log-probs."""
    pair = make_pair([[-1.0], [-4.0]], [[-2.0], [-0.5]], [[0.0], [0.0]], [[0.0], [0.0]])
    expected = simpo(pair, beta=0.3, gamma_beta_ratio=0.0)
    for value, other in zip(dpo(pair, beta=0.3), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("margin", "loss"), [(1e4, 0.0), (-1e4, 1e3), (400.0, 4.248354255291589e-18), (-210.0, 21.000000000758256)]
)
def test_far_margins(make_pair, margin, loss):
    """beta 0.1: 0 at +1000, 1000 at -1000, e^-40 = 4.25e-18 at +40, and 21 + e^-21 at -21, not cut to 21."""
    pair = make_pair([[margin]], [[0.0]], [[0.0]], [[0.0]])
    assert dpo(pair).losses.item() == pytest.approx(loss, rel=1e-13)


def test_gradient_check(random_pair, check_gradient):
    assert check_gradient(dpo, random_pair, beta=0.5)


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf, "0.1", True])
def test_a_beta_that_is_no_positive_number_is_refused_by_name(worked, beta):
    with pytest.raises(UserError, match=r"beta is .* must be a number above 0"):
        dpo(worked, beta=beta)


def test_a_missing_reference_is_a_sentence_not_a_nan(worked):
    with pytest.raises(UserError, match="reference"):
        dpo(PairStats(worked.chosen, worked.rejected))
