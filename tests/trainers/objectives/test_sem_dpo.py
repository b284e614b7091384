"""Sem-DPO: worked values, DPO without distance or weight, gradients scaled by the weight."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.sem_dpo import sem_dpo


def apart(pair: PairStats, *distances: float) -> PairStats:
    return replace(pair, columns={"semantic_distance": torch.tensor(distances, dtype=torch.float64)})


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 0.3715954329922412), (2.0, 0.24908786774999242)])
def test_worked_values(worked, alpha, expected):
    """e^-0.4 = 0.6703200 and e^-0.8 = 0.4493290, times DPO's 0.5543552."""
    output = sem_dpo(apart(worked, 0.4), alpha=alpha)
    assert output.losses.tolist() == pytest.approx([expected], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_is_dpo_with_alpha_0_and_at_no_distance(random_pair):
    for output in (sem_dpo(apart(random_pair, 0.1, 0.9, 2.0, 0.0), alpha=0), sem_dpo(apart(random_pair, 0, 0, 0, 0))):
        for value, other in zip(output, dpo(random_pair), strict=True):
            assert value.tolist() == other.tolist()


def test_gradients_are_scaled_by_the_weight_of_their_pair(random_pair):
    distances = [0.1, 0.9, 2.0, 0.0]
    leaf = random_pair.chosen.per_token_logps
    (weighted,) = torch.autograd.grad(sem_dpo(apart(random_pair, *distances)).losses.sum(), leaf)
    (plain,) = torch.autograd.grad(dpo(random_pair).losses.sum(), leaf)
    weights = torch.exp(-torch.tensor(distances, dtype=torch.float64))[:, None]
    torch.testing.assert_close(weighted, weights * plain, rtol=1e-12, atol=0)


def test_wrong_hyperparameters_are_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        sem_dpo(apart(worked, 0.4), beta=0)
    with pytest.raises(UserError, match="alpha is -1"):
        sem_dpo(apart(worked, 0.4), alpha=-1)
