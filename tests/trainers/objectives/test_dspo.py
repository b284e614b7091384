"""DSPO: a worked value, the denoising error at the reference, how the rejected sample acts."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.dspo import dspo


def test_worked_value(denoised):
    """beta 2: u = -1 * (0.01 - 0.035) = 0.025, weight 2 / (1 + e^0.025) = w; f - f_ref = (0.1, -0.1).

    ((0.3 - 0.1 w)^2 + (0.1 + 0.1 w)^2) / 2."""
    output = dspo(denoised, beta=2.0)
    w = 2 / (1 + math.exp(0.025))
    assert output.losses.tolist() == pytest.approx([((0.3 - 0.1 * w) ** 2 + (0.1 + 0.1 * w) ** 2) / 2], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.01], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.035], abs=1e-15)


def test_it_is_the_chosen_error_at_the_reference(at_reference):
    expected = at_reference.chosen.errors.mean(-1)
    torch.testing.assert_close(dspo(at_reference, beta=3.0).losses, expected, rtol=1e-12, atol=0)


def test_the_rejected_sample_acts_through_the_weight_alone(denoised):
    """A small beta: to first order the loss is e_w - beta * mean((f - y)(f - f_ref)), whatever the rejected error."""
    output = dspo(denoised)
    (found,) = torch.autograd.grad(output.losses.sum(), denoised.rejected.residual)
    assert 0 < found.abs().max() < 1e-5
    assert output.losses.item() == pytest.approx(0.05 - 0.001 * (0.3 * 0.1 - 0.1 * 0.1) / 2, abs=1e-7)


def test_wrong_settings_are_refused_by_name(denoised):
    with pytest.raises(UserError, match="beta is 0"):
        dspo(denoised, beta=0)
