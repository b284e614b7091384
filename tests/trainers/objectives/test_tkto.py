"""TKTO: Diffusion-KTO with its weights; the same caption twice."""

from dataclasses import replace

import pytest
import torch

from trainers.objectives.diffusion_kto import diffusion_kto
from trainers.objectives.tkto import tkto


def test_is_diffusion_kto(many_denoised):
    settings = {"beta": 70.0, "desirable_weight": 2.0, "undesirable_weight": 0.3}
    for value, other in zip(tkto(many_denoised, **settings), diffusion_kto(many_denoised, **settings), strict=True):
        assert value.tolist() == other.tolist()
    assert tkto(many_denoised).losses.tolist() == diffusion_kto(many_denoised).losses.tolist()


def test_the_same_caption_twice_pushes_nothing(many_denoised):
    """1 - s(x) + 1 - s(-x) = 1: half of it, whatever x."""
    same = replace(many_denoised, rejected=many_denoised.chosen, ref_rejected=many_denoised.ref_chosen)
    output = tkto(same)
    assert output.losses.tolist() == pytest.approx([0.5] * 4, abs=1e-14)
    assert torch.autograd.grad(output.losses.sum(), same.chosen.residual)[0].abs().max() < 1e-9
