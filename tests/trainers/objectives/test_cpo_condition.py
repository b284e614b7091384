"""CPO of conditions: a worked value with its gradient, the hinge, the term on the fitting condition."""

import math

import pytest

from diagnostics.errors import UserError
from trainers.objectives.cpo_condition import cpo_condition


def test_worked_value_and_gradient(denoised, slopes):
    """g = 0.05 - 0.1 = -0.05, g - g_ref = 0.01 - 0.035 = -0.025. beta 100: sigmoid(-1.25) = 0.2227 is a weight.

    margin 0.08: 0.2227 * 0.03 + 0.05 * 0.05; slopes -0.2227 - 0.05 and 0.2227: the weight has no gradient."""
    output = cpo_condition(denoised, beta=100.0, margin=0.08)
    weight = 1 / (1 + math.exp(1.25))
    assert output.losses.tolist() == pytest.approx([weight * 0.03 + 0.05 * 0.05], abs=1e-15)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.5], abs=1e-14)
    found = [slope.item() for slope in slopes(output.losses, denoised)]
    assert found == pytest.approx([-weight - 0.05, weight], abs=1e-12)


def test_no_gradient_where_the_order_is_right_by_the_margin(denoised, slopes):
    """g + margin = -0.05 + 0.01 < 0 and alpha 0."""
    output = cpo_condition(denoised, alpha=0.0)
    assert output.losses.tolist() == [0.0]
    assert not any(slope.any() for slope in slopes(output.losses, denoised))
    held = cpo_condition(denoised)
    assert [slope.item() for slope in slopes(held.losses, denoised)] == [-0.05, 0.0]


def test_half_the_hinge_at_the_reference(at_reference):
    """The weight is sigmoid(0) = 1/2."""
    g = at_reference.rejected.logps - at_reference.chosen.logps
    output = cpo_condition(at_reference, margin=5.0, alpha=0.0)
    assert output.losses.tolist() == pytest.approx((0.5 * (g + 5)).tolist(), abs=1e-12)


def test_wrong_settings_are_refused_by_name(denoised):
    with pytest.raises(UserError, match="margin is -1"):
        cpo_condition(denoised, margin=-1)
