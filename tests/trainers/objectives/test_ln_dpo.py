"""LN-DPO: a worked value and gradient, how it relates to DPO and SimPO, empty completions."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.ln_dpo import ln_dpo
from trainers.objectives.simpo import simpo


def test_worked_value_and_gradient(worked):
    """u / 2 - v / 3 = 1/2 + 2/3 = 7/6; beta 0.3: log(1 + e^-0.35) = 0.5333822, slope -0.3 / (1 + e^0.35).

    Of the slope a chosen token gets 1/2, a rejected token -1/3. Rewards, of the sums u = 1 and v = -2 as in TRL:
    0.3 and -0.6.
    """
    output = ln_dpo(worked, beta=0.3)
    assert output.losses.tolist() == pytest.approx([0.533382155418777], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.3], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.6], abs=1e-15)
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    slope = -0.3 / (1 + math.exp(0.35))
    assert chosen.tolist() == [pytest.approx([slope / 2] * 2, abs=1e-15)]
    assert rejected.tolist() == [pytest.approx([-slope / 3] * 3, abs=1e-15)]


def test_default_is_that_of_tulu_3(worked):
    """log(1 + e^(-5 * 7/6))."""
    assert ln_dpo(worked).losses.tolist() == pytest.approx([0.002924020576924599], abs=1e-15)


def test_with_equal_lengths_n_it_is_dpo_at_beta_over_n(make_pair):
    pair = make_pair([[-1.0, -2.0, -0.2]], [[-3.0, -1.0, -1.0]], [[-0.5, -0.5, -4.0]], [[-1.0, -1.0, -2.5]])
    found, known = ln_dpo(pair, beta=0.6), dpo(pair, beta=0.2)
    torch.testing.assert_close(found.losses, known.losses, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.chosen_rewards, 3 * known.chosen_rewards, rtol=0, atol=1e-12)


def test_is_simpo_without_gamma_at_a_flat_reference(random_pair, make_pair):
    p = random_pair
    flat = make_pair(
        *([[-0.0] * n for n in lengths] for lengths in (p.chosen.lengths.tolist(), p.rejected.lengths.tolist()))
    )
    pair = PairStats(p.chosen, p.rejected, flat.chosen, flat.rejected)
    losses = simpo(p, beta=2.0, gamma_beta_ratio=0).losses
    torch.testing.assert_close(ln_dpo(pair, beta=2.0).losses, losses, rtol=0, atol=1e-12)


def test_an_empty_completion_gives_nan_for_its_pair_alone(make_pair):
    flat = [[-1.0], [-1.0]]
    for sides in (([[], [-1.0]], flat, [[], [-1.0]], flat), (flat, [[], [-1.0]], flat, [[], [-1.0]])):
        assert ln_dpo(make_pair(*sides)).losses.isnan().tolist() == [True, False]


def test_a_wrong_beta_is_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        ln_dpo(worked, beta=0)
