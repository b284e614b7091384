"""Diffusion-DRO: worked values on either side of the hinge, its start."""

import pytest

from diagnostics.errors import UserError
from trainers.objectives.diffusion_dro import diffusion_dro


def test_worked_values_on_either_side_of_the_hinge(denoised, slopes):
    """D_w - D_l = -0.025: beyond a margin of 0.001 nothing is pushed; with 0.1 the loss is 0.075 and its slopes -+1."""
    output = diffusion_dro(denoised)
    assert output.losses.tolist() == [0.0]
    assert not any(slope.any() for slope in slopes(output.losses, denoised))
    wide = diffusion_dro(denoised, margin=0.1)
    assert wide.losses.tolist() == pytest.approx([0.075], abs=1e-15)
    assert [slope.item() for slope in slopes(wide.losses, denoised)] == [-1.0, 1.0]
    assert wide.chosen_rewards.tolist() == pytest.approx([-0.01], abs=1e-15)


def test_the_margin_at_the_reference(at_reference):
    assert diffusion_dro(at_reference).losses.tolist() == [0.001] * 4


def test_a_negative_margin_is_refused(denoised):
    with pytest.raises(UserError, match="margin is -1"):
        diffusion_dro(denoised, margin=-1)
