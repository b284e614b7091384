"""Diffusion-KTO: a worked value, z, half the weights at the reference, the gradient without z."""

import math

import pytest

from diagnostics.errors import UserError
from trainers.objectives.diffusion_kto import diffusion_kto


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_worked_value_and_gradient(denoised, slopes):
    """g = -0.01 and -0.035: their mean is below 0, so z = 0. beta 100: (1 - s(-1) + 1 - s(3.5)) / 2; no 1/2 at beta.

    Slopes -+ 100 s (1 - s) / 2."""
    output = diffusion_kto(denoised, beta=100.0)
    assert output.losses.tolist() == pytest.approx([(1 - s(-1) + 1 - s(3.5)) / 2], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([-1.0], abs=1e-14)
    assert output.rejected_rewards.tolist() == pytest.approx([-3.5], abs=1e-14)
    found = [slope.item() for slope in slopes(output.losses, denoised)]
    assert found == pytest.approx([-50 * s(-1) * s(1), 50 * s(3.5) * s(-3.5)], abs=1e-12)


def test_z_is_the_mean_over_all_samples_of_the_batch_without_gradient(make_denoised, slopes):
    """g_w = 0.04, 0.02 and g_l = 0.01, -0.03: z = 0.01. Weights 2 and 0.5 at beta 50."""
    pair = make_denoised([[[0.0]], [[0.0]]], [[[0.0]], [[0.2]]], [[[0.2]], [[0.02**0.5]]], [[[0.1]], [[0.1]]])
    output = diffusion_kto(pair, beta=50.0, desirable_weight=2.0, undesirable_weight=0.5)
    expected = [(2 * (1 - s(1.5)) + 0.5 * (1 - s(0.0))) / 2, (2 * (1 - s(0.5)) + 0.5 * (1 - s(2.0))) / 2]
    assert output.losses.tolist() == pytest.approx(expected, abs=1e-14)
    chosen, _ = slopes(output.losses, pair)
    assert chosen.flatten().tolist() == pytest.approx([-50 * s(1.5) * s(-1.5), -50 * s(0.5) * s(-0.5)], abs=1e-12)


def test_half_the_weight_of_either_side_at_the_reference(at_reference):
    """0.5 w of each sample; a pair is the mean of its two."""
    assert diffusion_kto(at_reference).losses.tolist() == [0.5] * 4
    weighted = diffusion_kto(at_reference, desirable_weight=3.0, undesirable_weight=1.0)
    assert weighted.losses.tolist() == [(0.5 * 3 + 0.5 * 1) / 2] * 4


def test_wrong_settings_are_refused_by_name(denoised):
    with pytest.raises(UserError, match="beta is 0"):
        diffusion_kto(denoised, beta=0)
    with pytest.raises(UserError, match="undesirable_weight is -1"):
        diffusion_kto(denoised, undesirable_weight=-1)
