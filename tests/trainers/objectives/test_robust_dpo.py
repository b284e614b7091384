"""Robust DPO: a worked value, unbiasedness, how it relates to DPO, its unbounded side."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.robust_dpo import robust_dpo


def slopes(losses, pair):
    return torch.autograd.grad(losses.sum(), (pair.chosen.per_token_logps, pair.rejected.per_token_logps))


def test_worked_value(worked):
    """beta * margin = 0.3: (0.9 * 0.5543552 - 0.1 * 0.8543552) / 0.8."""
    output = robust_dpo(worked, beta=0.1, label_smoothing=0.1)
    assert output.losses.tolist() == pytest.approx([0.5168552444685271], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


@pytest.mark.parametrize("e", [0.1, 0.3, 0.45])
def test_its_mean_over_flipped_labels_is_dpo_in_value_and_gradient(random_pair, e):
    """(1 - e) * robust(pair) + e * robust(pair exchanged) = dpo(pair): without bias."""
    p = random_pair
    there = robust_dpo(p, beta=0.3, label_smoothing=e)
    back = robust_dpo(PairStats(p.rejected, p.chosen, p.ref_rejected, p.ref_chosen), beta=0.3, label_smoothing=e)
    mean, plain = (1 - e) * there.losses + e * back.losses, dpo(p, beta=0.3).losses
    torch.testing.assert_close(mean, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(slopes(mean, p), slopes(plain, p), rtol=0, atol=1e-12)


def test_is_dpo_without_smoothing(random_pair):
    ours = robust_dpo(random_pair, beta=0.3, label_smoothing=0)
    torch.testing.assert_close(ours, dpo(random_pair, beta=0.3), rtol=0, atol=1e-12)


def test_falls_without_bound_as_the_margin_grows(make_pair):
    """Slope -beta * e / (1 - 2 e) = -0.1 * 0.1 / 0.8 far right: loss -0.0125 * 1e4 = -125 there."""
    pair = make_pair([[1e4]], [[0.0]], [[0.0]], [[0.0]])
    losses = robust_dpo(pair, beta=0.1, label_smoothing=0.1).losses
    assert losses.item() == pytest.approx(-125.0, abs=1e-9)
    assert slopes(losses, pair)[0].item() == pytest.approx(-0.0125, abs=1e-14)


@pytest.mark.parametrize("value", [0.5, 0.7, -0.1, math.nan])
def test_wrong_hyperparameters_are_refused_by_name(worked, value):
    with pytest.raises(UserError, match="label_smoothing is"):
        robust_dpo(worked, label_smoothing=value)
    with pytest.raises(UserError, match="beta is 0"):
        robust_dpo(worked, beta=0)
