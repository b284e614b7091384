"""cDPO: a worked value, its bounded margin, how it relates to DPO."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.cdpo import cdpo
from trainers.objectives.dpo import dpo


def slopes(losses, pair):
    return torch.autograd.grad(losses.sum(), (pair.chosen.per_token_logps, pair.rejected.per_token_logps))


def test_worked_value(worked):
    """beta * margin = 0.3: 0.8 * log(1 + e^-0.3) + 0.2 * log(1 + e^0.3) = 0.8 * 0.5543552 + 0.2 * 0.8543552."""
    output = cdpo(worked, beta=0.1, label_smoothing=0.2)
    assert output.losses.tolist() == pytest.approx([0.6143552444685271], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    assert cdpo(worked).losses.tolist() == output.losses.tolist()


def test_is_dpo_without_smoothing_in_value_and_gradient(random_pair):
    ours, plain = cdpo(random_pair, beta=0.3, label_smoothing=0), dpo(random_pair, beta=0.3)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(slopes(ours.losses, random_pair), slopes(plain.losses, random_pair), rtol=0, atol=1e-12)


def test_smoothing_adds_e_times_the_reward_margin_to_dpo(random_pair):
    """-log sigmoid(-x) = -log sigmoid(x) + x."""
    plain = dpo(random_pair, beta=0.3)
    expected = plain.losses + 0.4 * (plain.chosen_rewards - plain.rejected_rewards)
    torch.testing.assert_close(cdpo(random_pair, beta=0.3, label_smoothing=0.4).losses, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("e", [0.05, 0.2, 0.4])
def test_no_gradient_at_the_margin_that_the_labels_deserve_and_the_binary_entropy_as_loss(make_pair, e):
    margin = math.log((1 - e) / e) / 0.1
    for shift, sign in ((0.0, 0), (1.0, 1), (-1.0, -1)):
        pair = make_pair([[margin + shift]], [[0.0]], [[0.0]], [[0.0]])
        losses = cdpo(pair, beta=0.1, label_smoothing=e).losses
        slope = slopes(losses, pair)[0].item()
        assert (slope > 1e-4) - (slope < -1e-4) == sign
        if not shift:
            assert abs(slope) < 1e-12
            assert losses.item() == pytest.approx(-e * math.log(e) - (1 - e) * math.log(1 - e), abs=1e-12)


@pytest.mark.parametrize("value", [0.5, -0.1, math.nan, "0.1"])
def test_wrong_hyperparameters_are_refused_by_name(worked, value):
    with pytest.raises(UserError, match="label_smoothing is"):
        cdpo(worked, label_smoothing=value)
    with pytest.raises(UserError, match="beta is 0"):
        cdpo(worked, beta=0)


def test_a_missing_reference_is_refused(worked):
    with pytest.raises(UserError, match="reference"):
        cdpo(PairStats(worked.chosen, worked.rejected))
