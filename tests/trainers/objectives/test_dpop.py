"""DPOP: worked values with and without a fallen chosen answer, its gradients, DPO without the penalty."""

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.dpop import dpop


@pytest.fixture
def fallen(worked) -> PairStats:
    """The worked pair with its sides exchanged: u = -2, v = 1."""
    return PairStats(worked.rejected, worked.chosen, worked.ref_rejected, worked.ref_chosen)


def test_worked_value_without_a_fall(worked):
    """u = 1 costs nothing: log(1 + e^-0.9) = 0.3411539 at any penalty."""
    output = dpop(worked)
    assert output.losses.tolist() == pytest.approx([0.3411538747320878], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.3], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.6], abs=1e-15)


def test_worked_value_of_a_fallen_chosen_answer(fallen):
    """u = -2, v = 1, penalty 5: 0.3 * (-3 - 10) = -3.9; log(1 + e^3.9) = 3.9200398. Rewards know no penalty."""
    output = dpop(fallen, penalty=5.0)
    assert output.losses.tolist() == pytest.approx([3.9200397672603975], abs=1e-13)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.6], abs=1e-15)


def test_a_fallen_answer_is_pulled_up_1_plus_penalty_times_as_hard(fallen, worked):
    for pair, ratio in ((fallen, 6.0), (worked, 1.0)):
        sides = pair.chosen.per_token_logps, pair.rejected.per_token_logps
        chosen, rejected = torch.autograd.grad(dpop(pair, penalty=5.0).losses.sum(), sides)
        assert (chosen.nanmean() / -rejected.nanmean()).item() == pytest.approx(ratio, rel=1e-12)


def test_is_dpo_without_the_penalty(random_pair):
    for value, other in zip(dpop(random_pair, penalty=0), dpo(random_pair, beta=0.3), strict=True):
        assert value.tolist() == other.tolist()


def test_wrong_hyperparameters_are_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        dpop(worked, beta=0)
    with pytest.raises(UserError, match="penalty is -1"):
        dpop(worked, penalty=-1)
