"""SoPo: a worked value, the threshold, Diffusion-DPO, weights of easy and hard motions."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.diffusion_dpo import diffusion_dpo
from trainers.objectives.sopo import sopo


def judged(pair, score: float, similarity: float):
    columns = {"rejected_score": score, "similarity": similarity}
    size = len(pair.chosen.completion_mask)
    return replace(pair, columns={k: torch.full((size,), v, dtype=torch.float64) for k, v in columns.items()})


def test_worked_value_and_gradient(denoised, slopes):
    """p 0.8, m 1: u = -(1.2 * 0.01 - 0.035) = 0.023; slopes -1.2 and 1 over (1 + e^0.023)."""
    pair = judged(denoised, 0.4, 0.8)
    output = sopo(pair)
    assert output.losses.tolist() == pytest.approx([math.log1p(math.exp(-0.023))], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.01], abs=1e-15)
    push = 1 / (1 + math.exp(0.023))
    assert [slope.item() for slope in slopes(output.losses, pair)] == pytest.approx([-1.2 * push, push], abs=1e-12)


def test_an_own_sample_that_is_good_enough_is_not_pushed(denoised, slopes):
    """m = 0 from the threshold on: the chosen error alone."""
    pair = judged(denoised, 0.45, 0.8)
    output = sopo(pair)
    assert output.losses.tolist() == pytest.approx([math.log1p(math.exp(0.012))], abs=1e-14)
    chosen, rejected = slopes(output.losses, pair)
    assert chosen.item() < 0
    assert rejected.item() == 0
    assert slopes(sopo(judged(denoised, 0.45, 0.8), threshold=0.5).losses, denoised)[1].item() > 0


def test_m_1_and_p_1_is_diffusion_dpo_with_half_beta_1(many_denoised):
    for value, other in zip(sopo(judged(many_denoised, 0.0, 1.0)), diffusion_dpo(many_denoised, beta=2.0), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-13, atol=1e-15)


def test_log_2_at_the_reference(at_reference):
    assert sopo(judged(at_reference, 0.1, 0.3)).losses.tolist() == [math.log(2)] * 4


def test_missing_columns_are_refused_by_name(denoised):
    with pytest.raises(UserError, match="'rejected_score'"):
        sopo(denoised)
