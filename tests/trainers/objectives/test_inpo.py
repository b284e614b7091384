"""DDIM-InPO: Diffusion-DPO with its own beta, wherever the errors were taken."""

import math

import pytest

from trainers.objectives import hyperparameters
from trainers.objectives.diffusion_dpo import diffusion_dpo
from trainers.objectives.inpo import inpo


def test_worked_value_at_its_default(denoised):
    """beta 2000: -1000 * (0.01 - 0.035) = 25."""
    assert inpo(denoised).losses.tolist() == pytest.approx([math.log1p(math.exp(-25))], rel=1e-9)


def test_is_diffusion_dpo(many_denoised):
    assert hyperparameters("inpo") == {"beta": 2000.0}
    for value, other in zip(inpo(many_denoised), diffusion_dpo(many_denoised, beta=2000.0), strict=True):
        assert value.tolist() == other.tolist()
