"""Diffusion-DPO: a worked value, diffusers' formula, log 2 at the reference, sides exchanged, big betas, DPO."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.diffusion_dpo import diffusion_dpo
from trainers.objectives.dpo import dpo


def test_worked_value_and_gradient(denoised, slopes):
    """beta 100: -50 * (0.01 - 0.035) = 1.25; log(1 + e^-1.25) = 0.2519; slopes -+ 50 / (1 + e^1.25)."""
    output = diffusion_dpo(denoised, beta=100.0)
    assert output.losses.tolist() == pytest.approx([math.log1p(math.exp(-1.25))], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.5], abs=1e-14)
    assert output.rejected_rewards.tolist() == pytest.approx([-1.75], abs=1e-14)
    push = 50 / (1 + math.exp(1.25))
    chosen, rejected = slopes(output.losses, denoised)
    assert (chosen.item(), rejected.item()) == pytest.approx((-push, push), abs=1e-12)


def test_beta_2500_of_diffusers_is_beta_5000(many_denoised):
    """Their script: model difference less reference difference, times beta_dpo, in a sigmoid of each pair."""
    errors = [side.errors.mean(-1).tolist() for side in (
        many_denoised.chosen, many_denoised.rejected, many_denoised.ref_chosen, many_denoised.ref_rejected
    )]  # fmt: skip
    theirs = [math.log1p(math.exp(2500 * ((w - x) - (rw - rx)))) for w, x, rw, rx in zip(*errors, strict=True)]
    assert diffusion_dpo(many_denoised, beta=5000.0).losses.tolist() == pytest.approx(theirs, rel=1e-9)
    assert diffusion_dpo(many_denoised).losses.tolist() == diffusion_dpo(many_denoised, beta=5000.0).losses.tolist()


def test_log_2_at_the_reference_and_exchanged_sides_are_pushed_the_other_way(at_reference, slopes):
    output = diffusion_dpo(at_reference)
    assert output.losses.tolist() == [math.log(2)] * 4
    assert output.chosen_rewards.tolist() == output.rejected_rewards.tolist() == [0.0] * 4
    turned = replace(
        at_reference, chosen=at_reference.rejected, rejected=at_reference.chosen,
        ref_chosen=at_reference.ref_rejected, ref_rejected=at_reference.ref_chosen,
    )  # fmt: skip
    chosen, rejected = slopes(output.losses, at_reference)
    other, same = slopes(diffusion_dpo(turned).losses, turned)
    assert chosen.eq(-1250).all()
    assert (same + chosen).abs().max() == (other + rejected).abs().max() == 0


def test_the_sigmoid_is_of_each_pair_and_not_of_the_mean(make_denoised):
    """Margins +-1.25 of two pairs: (0.2519 + 1.5019) / 2 = 0.8769, not log 2."""
    pair = make_denoised(
        [[[0.3, 0.1]], [[0.4, 0.2]]], [[[0.4, 0.2]], [[0.3, 0.1]]], [[[0.2, 0.2]], [[0.3, 0.2]]],
        [[[0.3, 0.2]], [[0.2, 0.2]]],
    )  # fmt: skip
    losses = diffusion_dpo(pair, beta=100.0).losses
    assert losses.mean().item() == pytest.approx(math.log1p(math.exp(-1.25)) + 0.625, abs=1e-14)


def test_several_draws_are_averaged_before_the_sigmoid(make_denoised):
    """Two draws of D_w 0.01 and 0.03: the margin is that of 0.02."""
    pair = make_denoised([[[0.3], [0.5]]], [[[0.0], [0.0]]], [[[0.08**0.5], [0.22**0.5]]], [[[0.0], [0.0]]])
    assert diffusion_dpo(pair, beta=100.0).losses.item() == pytest.approx(math.log1p(math.e), abs=1e-12)


def test_saturated_margins_stay_exact(make_denoised, slopes):
    """D_w - D_l = +1 and -1 at beta 5000: losses 2500 and 0, slopes 2500 and 0."""
    pair = make_denoised([[[1.0]], [[0.0]]], [[[0.0]], [[1.0]]], [[[0.0]], [[0.0]]], [[[0.0]], [[0.0]]])
    output = diffusion_dpo(pair)
    assert output.losses.tolist() == [2500.0, 0.0]
    assert slopes(output.losses, pair)[0].flatten().tolist() == [-2500.0, 0.0]


def test_is_dpo_with_half_the_beta_on_the_errors(many_denoised):
    torch.testing.assert_close(diffusion_dpo(many_denoised, beta=60.0).losses, dpo(many_denoised, beta=30.0).losses)


def test_wrong_settings_and_a_missing_reference_are_refused(denoised):
    with pytest.raises(UserError, match="beta is 0"):
        diffusion_dpo(denoised, beta=0)
    with pytest.raises(UserError, match="reference"):
        diffusion_dpo(replace(denoised, ref_chosen=None))
