"""ADPO: a worked value, its relation to DPO with sure and flipped labels, where its pull ends."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.adpo import adpo
from trainers.objectives.dpo import dpo


def test_worked_value(worked):
    """Margin 3 / tau 2 = 1.5; 0.7 log(1 + e^-1.5) + 0.3 log(1 + e^1.5) = 0.1409893 + 0.5104240 = 0.6514133."""
    output = adpo(worked, tau=2.0, preference=0.7)
    assert output.losses.tolist() == pytest.approx([0.6514132779827524], abs=1e-14)
    assert output.chosen_rewards.tolist() == [0.5]
    assert output.rejected_rewards.tolist() == [-1.0]


def test_a_sure_preference_is_dpo_at_one_over_tau(random_pair):
    for value, other in zip(adpo(random_pair, tau=0.8), dpo(random_pair, beta=1.25), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-14)


def test_a_soft_preference_is_dpo_with_labels_flipped_at_that_rate(random_pair):
    """cDPO: (1 - e) dpo + e dpo of the exchanged pair, in values and gradients."""
    pair = random_pair
    exchanged = PairStats(pair.rejected, pair.chosen, pair.ref_rejected, pair.ref_chosen)
    flipped = 0.8 * dpo(pair, beta=1.25).losses + 0.2 * dpo(exchanged, beta=1.25).losses
    soft = adpo(pair, tau=0.8, preference=0.8).losses
    torch.testing.assert_close(soft, flipped, rtol=1e-12, atol=0)
    sides = pair.chosen.per_token_logps, pair.rejected.per_token_logps
    for one, other in zip(
        torch.autograd.grad(soft.sum(), sides), torch.autograd.grad(flipped.sum(), sides), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


def test_the_pull_ends_at_tau_times_the_log_odds(make_pair):
    """tau log(q / (1 - q)) = 0.5 log 3."""
    margin = 0.5 * math.log(3)
    pair = make_pair([[-1.0]], [[-2.0]], [[-1.0 - margin]], [[-2.0]])
    loss = adpo(pair, tau=0.5, preference=0.75).losses
    (gradient,) = torch.autograd.grad(loss.sum(), pair.chosen.per_token_logps)
    assert gradient.item() == pytest.approx(0.0, abs=1e-15)
    assert loss.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), abs=1e-15)


def test_wrong_hyperparameters_are_refused_by_name(worked):
    with pytest.raises(UserError, match="tau is 0"):
        adpo(worked, tau=0)
    with pytest.raises(UserError, match=r"preference is 1\.1"):
        adpo(worked, preference=1.1)
