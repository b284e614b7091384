"""NCA for pairs: a worked value, the chosen answer's own target, its parts."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.nca_pair import nca_pair


def slopes(losses, pair):
    return torch.autograd.grad(losses.sum(), (pair.chosen.per_token_logps, pair.rejected.per_token_logps))


def test_worked_value(worked):
    """beta 0.1: log(1 + e^-0.1) + 0.5 log(1 + e^0.1) + 0.5 log(1 + e^-0.2)."""
    output = nca_pair(worked, beta=0.1)
    assert output.losses.tolist() == pytest.approx([1.3156644248011522], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    assert nca_pair(worked).losses.tolist() == pytest.approx([1.3788381106251106], abs=1e-14)


def test_is_2_log_2_where_policy_is_the_reference(random_pair):
    same = PairStats(random_pair.chosen, random_pair.rejected, random_pair.chosen, random_pair.rejected)
    assert nca_pair(same).losses.tolist() == pytest.approx([2 * math.log(2)] * 4, abs=1e-15)


def test_the_chosen_log_ratio_is_pulled_to_log_2_over_beta_whatever_the_rejected_one(make_pair):
    """Slope in u: beta * (-sigmoid(-beta u) + 0.5 sigmoid(beta u)), 0 where sigmoid(beta u) = 2/3."""
    target = math.log(2) / 0.1
    pair = make_pair([[target], [target - 1], [target + 1]], [[-3.0], [9.0], [0.0]], [[0.0]] * 3, [[0.0]] * 3)
    chosen, rejected = slopes(nca_pair(pair, beta=0.1).losses, pair)
    at, below, above = chosen.flatten().tolist()
    assert abs(at) < 1e-16
    assert below < -1e-3
    assert above > 1e-3
    expected = [0.05 / (1 + math.exp(-0.1 * v)) for v in (-3.0, 9.0, 0.0)]
    assert rejected.flatten().tolist() == pytest.approx(expected, abs=1e-15)


def test_a_wrong_beta_is_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        nca_pair(worked, beta=0)
