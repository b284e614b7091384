"""Flow-DPO: Diffusion-DPO with its own beta, on whatever errors there are."""

import math

import pytest

from trainers.objectives import hyperparameters
from trainers.objectives.diffusion_dpo import diffusion_dpo
from trainers.objectives.flow_dpo import flow_dpo


def test_worked_value_at_its_default(denoised):
    """beta 100: -50 * (0.01 - 0.035) = 1.25."""
    assert flow_dpo(denoised).losses.tolist() == pytest.approx([math.log1p(math.exp(-1.25))], abs=1e-14)


def test_is_diffusion_dpo(many_denoised):
    assert hyperparameters("flow_dpo") == {"beta": 100.0}
    for value, other in zip(flow_dpo(many_denoised, beta=7.0), diffusion_dpo(many_denoised, beta=7.0), strict=True):
        assert value.tolist() == other.tolist()
