"""SmPO: a worked value, sure and undecided judges, a pair turned round, Diffusion-DPO."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.diffusion_dpo import diffusion_dpo
from trainers.objectives.smpo import smpo


def scored(pair, chosen: float, rejected: float):
    columns = {"chosen_score": [chosen], "rejected_score": [rejected]}
    return replace(pair, columns={k: torch.tensor(v, dtype=torch.float64) for k, v in columns.items()})


def test_worked_value(denoised):
    """Scores scaled (0.2820 - 0.1154) / 0.1666 = 1 and 0: p = e / (e + 1) = 0.7311, 10 * (2 p - 1) = 4.6212.

    beta 100: 4.6212 * 1.25 = 5.7765."""
    output = smpo(scored(denoised, 0.2820, 0.1154), beta=100.0)
    factor = 10 * (2 * math.e / (math.e + 1) - 1)
    assert output.losses.tolist() == pytest.approx([math.log1p(math.exp(-factor * 1.25))], rel=1e-12)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.5], abs=1e-14)


def test_a_sure_judge_is_diffusion_dpo_with_gain_times_the_margin(denoised):
    """p = 1: scores 50 scaled units apart."""
    sure = smpo(scored(denoised, 10.0, 0.2), beta=4.0)
    assert sure.losses.tolist() == pytest.approx(diffusion_dpo(denoised, beta=40.0).losses.tolist(), rel=1e-12)
    half = smpo(scored(denoised, 10.0, 0.2), beta=4.0, gain=1.0)
    assert half.losses.tolist() == pytest.approx(diffusion_dpo(denoised, beta=4.0).losses.tolist(), rel=1e-12)


def test_an_undecided_judge_pushes_nothing_and_one_that_disagrees_turns_the_pair_round(denoised, slopes):
    output = smpo(scored(denoised, 0.2, 0.2))
    assert output.losses.tolist() == [math.log(2)]
    assert not any(slope.any() for slope in slopes(output.losses, denoised))
    chosen, rejected = slopes(smpo(scored(denoised, 0.15, 0.25), beta=1.0).losses, denoised)
    assert chosen.item() == -rejected.item() > 0


def test_log_2_at_the_reference_and_each_pair_has_its_own_scores(at_reference, many_denoised):
    assert smpo(at_reference).losses.tolist() == [math.log(2)] * 4
    alone = replace(many_denoised, columns={k: v.flip(0) for k, v in many_denoised.columns.items()})
    assert smpo(alone).losses.tolist() != smpo(many_denoised).losses.tolist()


def test_wrong_settings_are_refused(denoised):
    with pytest.raises(UserError, match="score_high must be the larger"):
        smpo(scored(denoised, 0.2, 0.1), score_low=0.3)
    with pytest.raises(UserError, match="'chosen_score'"):
        smpo(denoised)
