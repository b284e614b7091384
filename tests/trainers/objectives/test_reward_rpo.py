"""Reward-aware RPO: worked values and slopes of the three distances, ADPO less an entropy, DPO, its target."""

import math
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers import objectives
from trainers.objectives.adpo import adpo
from trainers.objectives.dpo import dpo
from trainers.objectives.reward_rpo import Distance, reward_rpo

DISTANCES: tuple[Distance, ...] = get_args(Distance)


def scored(pair: PairStats, *margins: float) -> PairStats:
    """Columns whose difference is the margin."""
    low = torch.full((len(margins),), 0.25, dtype=torch.float64)
    return replace(
        pair, columns={"chosen_score": low + torch.tensor(margins, dtype=torch.float64), "rejected_score": low}
    )


@pytest.mark.parametrize(
    ("distance", "expected", "slope"),
    [
        ("bwd_kl", 0.028241819084555725, -0.11553196431595347),
        ("fwd_kl", 0.029524163073421095, -0.12222915584537294),
        ("sq", 0.25, -1.0),
    ],
)
def test_worked_values_and_slopes(worked, distance, expected, slope):
    """x = 0.3, a = 0.8; sigmoid 0.5744425 and 0.6899745. A chosen token gets beta = 0.1 times the slope in x:

    sigmoid(x) - sigmoid(a), sigmoid(x) sigmoid(-x) (x - a), 2 (x - a).
    """
    output = reward_rpo(scored(worked, 0.8), distance=distance)
    assert output.losses.tolist() == pytest.approx([expected], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    (gradient,) = torch.autograd.grad(output.losses.sum(), worked.chosen.per_token_logps)
    assert gradient.tolist() == [pytest.approx([0.1 * slope] * 2, abs=1e-14)]


def test_eta_scales_the_scores(worked):
    assert reward_rpo(scored(worked, 0.8), eta=2.0).losses.tolist() == pytest.approx([0.1520784042542901], abs=1e-14)


def test_bwd_kl_is_adpo_less_the_entropy_of_its_preference(random_pair):
    q = 1 / (1 + math.exp(-0.8))
    entropy = -q * math.log(q) - (1 - q) * math.log(1 - q)
    losses = reward_rpo(scored(random_pair, *[0.8] * 4), beta=1.25).losses
    torch.testing.assert_close(
        losses, adpo(random_pair, tau=0.8, preference=q).losses - entropy, rtol=1e-12, atol=1e-14
    )


def test_bwd_kl_to_a_sure_preference_is_dpo(random_pair):
    losses = reward_rpo(scored(random_pair, *[60.0] * 4), beta=0.3).losses
    torch.testing.assert_close(losses, dpo(random_pair, beta=0.3).losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("distance", DISTANCES)
def test_0_with_no_gradient_at_the_wanted_margin(worked, distance):
    losses = reward_rpo(scored(worked, 0.3), distance=distance).losses
    (gradient,) = torch.autograd.grad(losses.sum(), worked.chosen.per_token_logps)
    assert losses.tolist() == pytest.approx([0.0], abs=1e-14)
    assert gradient.tolist() == [pytest.approx([0.0, 0.0], abs=1e-14)]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("far", [-200.0, -1e4])
def test_finite_far_away(make_pair, distance, far):
    rows = list(product([-1e-3, far], repeat=4))
    pair = scored(make_pair(*([[row[side]] for row in rows] for side in range(4))), *[1e4, -1e4] * 8)
    losses = reward_rpo(pair, beta=1.0, distance=distance).losses
    gradients = torch.autograd.grad(losses.sum(), [pair.chosen.per_token_logps, pair.rejected.per_token_logps])
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_wrong_hyperparameters_are_refused_by_name(worked):
    for wrong in ({"beta": 0}, {"eta": 0}, {"distance": "kl"}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is "):
            objectives.load("reward_rpo")(scored(worked, 0.8), **wrong)
