"""DMPO: a worked value, its start, where it ends, far away."""

import math

import pytest

from diagnostics.errors import UserError
from trainers.objectives.dmpo import dmpo


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_worked_value_and_gradient(denoised, slopes):
    """beta 100, alpha 0.1: u = 1.25, KL(sigmoid(1.25) || 0.9); d KL / du = p (1 - p) (u - log 9)."""
    output = dmpo(denoised, beta=100.0, alpha=0.1)
    p = 1 / (1 + math.exp(-1.25))
    assert output.losses.tolist() == pytest.approx([kl(p, 0.9)], abs=1e-14)
    slope = 50 * p * (1 - p) * (1.25 - math.log(9))
    assert [s.item() for s in slopes(output.losses, denoised)] == pytest.approx([slope, -slope], abs=1e-12)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.5], abs=1e-14)


@pytest.mark.parametrize("alpha", [0.01, 0.3])
def test_kl_of_a_half_at_the_reference(at_reference, alpha):
    """-log 2 - log(alpha (1 - alpha)) / 2."""
    expected = -math.log(2) - math.log(alpha * (1 - alpha)) / 2
    assert kl(0.5, 1 - alpha) == pytest.approx(expected, abs=1e-14)
    assert dmpo(at_reference, alpha=alpha).losses.tolist() == pytest.approx([expected] * 4, abs=1e-14)


def test_it_is_0_where_the_margin_says_the_label(denoised, slopes):
    """u = log(0.9 / 0.1): beta = 2 * log 9 / 0.025."""
    output = dmpo(denoised, beta=2 * math.log(9) / 0.025, alpha=0.1)
    assert output.losses.item() == pytest.approx(0, abs=1e-14)
    assert abs(slopes(output.losses, denoised)[0].item()) < 1e-9


def test_saturated_margins(make_denoised):
    """u = -2500 and 2500: KL(0 || q) = -log(1 - q) = -log 0.01, KL(1 || q) = -log 0.99."""
    pair = make_denoised([[[1.0]], [[0.0]]], [[[0.0]], [[1.0]]], [[[0.0]], [[0.0]]], [[[0.0]], [[0.0]]])
    found = dmpo(pair, beta=5000.0).losses.tolist()
    assert found == pytest.approx([-math.log(0.01), -math.log(0.99)], abs=1e-14)


@pytest.mark.parametrize("alpha", [0, 1, 1.5])
def test_wrong_settings_are_refused_by_name(denoised, alpha):
    with pytest.raises(UserError, match=f"alpha is {alpha}"):
        dmpo(denoised, alpha=alpha)
