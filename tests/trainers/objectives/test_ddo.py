"""DDO: a worked value, its start, what each side is asked."""

import math

import pytest

from diagnostics.errors import UserError
from trainers.objectives.ddo import ddo


def test_worked_value_and_gradient(denoised, slopes):
    """beta 20, alpha 3: log(1 + e^0.2) + 3 log(1 + e^-0.7); slopes -20 / (1 + e^-0.2) and 60 / (1 + e^0.7)."""
    output = ddo(denoised, beta=20.0, alpha=3.0)
    expected = math.log1p(math.exp(0.2)) + 3 * math.log1p(math.exp(-0.7))
    assert output.losses.tolist() == pytest.approx([expected], abs=1e-14)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.7], abs=1e-14)
    found = [slope.item() for slope in slopes(output.losses, denoised)]
    assert found == pytest.approx([-20 / (1 + math.exp(-0.2)), 60 / (1 + math.exp(0.7))], abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 6.0])
def test_one_plus_alpha_times_log_2_at_the_reference(at_reference, alpha):
    assert ddo(at_reference, alpha=alpha).losses.tolist() == pytest.approx([(1 + alpha) * math.log(2)] * 4, abs=1e-14)


def test_wrong_settings_are_refused_by_name(denoised):
    with pytest.raises(UserError, match="alpha is -1"):
        ddo(denoised, alpha=-1)
