"""TDPO of captions: the same caption twice, Diffusion-DPO."""

import math
from dataclasses import replace

import torch

from trainers.objectives.diffusion_dpo import diffusion_dpo
from trainers.objectives.tdpo_caption import tdpo_caption


def test_the_same_caption_twice_is_log_2_without_gradient(many_denoised):
    same = replace(many_denoised, rejected=many_denoised.chosen, ref_rejected=many_denoised.ref_chosen)
    output = tdpo_caption(same)
    assert output.losses.tolist() == [math.log(2)] * 4
    assert not torch.autograd.grad(output.losses.sum(), same.chosen.residual)[0].any()


def test_is_diffusion_dpo_with_its_beta(many_denoised):
    for value, other in zip(tdpo_caption(many_denoised), diffusion_dpo(many_denoised), strict=True):
        assert value.tolist() == other.tolist()
