"""PG-DPO's rejection scaling: a worked value, both limits, scores below 0."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.diffusion_dpo import diffusion_dpo
from trainers.objectives.pg_dpo import pg_dpo


def scored(pair, chosen: float, rejected: float):
    columns = {"chosen_score": [chosen], "rejected_score": [rejected]}
    return replace(pair, columns={k: torch.tensor(v, dtype=torch.float64) for k, v in columns.items()})


def test_worked_value_and_gradient(denoised, slopes):
    """Scores 3 and 2: a = sigmoid(1 / 2) = 0.6225 (epsilon 1e-12). beta 100: -50 * (0.01 - a * 0.035)."""
    pair = scored(denoised, 3.0, 2.0)
    output = pg_dpo(pair, beta=100.0, epsilon=1e-12)
    a = 1 / (1 + math.exp(-0.5))
    margin = -50 * (0.01 - a * 0.035)
    assert output.losses.tolist() == pytest.approx([math.log1p(math.exp(-margin))], abs=1e-11)
    chosen, rejected = (slope.item() for slope in slopes(output.losses, pair))
    assert rejected / -chosen == pytest.approx(a, rel=1e-9)
    assert output.rejected_rewards.tolist() == pytest.approx([-1.75], abs=1e-14)


def test_scores_far_apart_are_diffusion_dpo_and_equal_ones_halve_the_rejected(denoised, slopes):
    far, plain = pg_dpo(scored(denoised, 1e3, 1.0), beta=100.0), diffusion_dpo(denoised, beta=100.0)
    assert far.losses.tolist() == pytest.approx(plain.losses.tolist(), rel=1e-12)
    pair = scored(denoised, 0.7, 0.7)
    chosen, rejected = (slope.item() for slope in slopes(pg_dpo(pair, beta=100.0).losses, pair))
    assert rejected == pytest.approx(-chosen / 2, rel=1e-12)


def test_a_score_below_0_does_not_turn_the_ratio_round(denoised, slopes):
    """r_w = 1, r_l = -1: the better sample's margin counts as such, sigmoid(2)."""
    pair = scored(denoised, 1.0, -1.0)
    chosen, rejected = (slope.item() for slope in slopes(pg_dpo(pair).losses, pair))
    assert rejected / -chosen == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-5)
    assert pg_dpo(scored(denoised, 1.0, 0.0)).losses.isfinite().all()


def test_log_2_at_the_reference(at_reference):
    assert pg_dpo(at_reference).losses.tolist() == [math.log(2)] * 4


def test_missing_columns_and_wrong_settings_are_refused(denoised):
    with pytest.raises(UserError, match="'chosen_score'"):
        pg_dpo(denoised)
    with pytest.raises(UserError, match="epsilon is 0"):
        pg_dpo(scored(denoised, 1.0, 0.5), epsilon=0)
