"""BCO: a worked value, the running mean by hand over two batches, no gradient through it."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.bco import bco, statistics
from trainers.objectives.bco_pair import bco_pair


def test_worked_value(worked):
    """Rewards 0.1 and -0.2, delta their mean -0.05: L(0.15) + L(0.15) = 2 * 0.6209570 = 1.2419141."""
    output = bco(worked, beta=0.1)
    assert output.losses.tolist() == pytest.approx([1.2419140955790642], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_delta_is_the_mean_of_all_rewards_so_far(make_pair):
    """Batch 1: log-ratios 4, 2 chosen, 1, -3 rejected: beta 0.5 times their sum 4 = 2, over 4: 0.5.

    Batch 2: 6 and -12: rewards 3 and -6. (2 + 3 - 6) / 6 = -1/6, not the mean of the means (0.5 - 1.5) / 2.
    """
    first = make_pair([[4.0], [2.0]], [[1.0], [-3.0]], [[0.0], [0.0]], [[0.0], [0.0]])
    second = make_pair([[6.0]], [[-12.0]], [[0.0]], [[0.0]])
    one = statistics(first, None, beta=0.5)
    assert one == {"delta": 0.5, "count": 4}
    two = statistics(second, one, beta=0.5)
    assert two == {"delta": pytest.approx(-1 / 6, abs=1e-15), "count": 6}
    loss = math.log1p(math.exp(-(3 + 1 / 6))) + math.log1p(math.exp(-(6 - 1 / 6)))
    assert bco(second, beta=0.5, statistics=two).losses.tolist() == pytest.approx([loss], abs=1e-14)


def test_statistics_of_parts_in_turn_are_those_of_the_whole(random_pair, make_pair):
    pair = make_pair([[4.0], [2.0]], [[1.0], [-3.0]], [[0.0], [0.0]], [[0.0], [0.0]])
    whole = statistics(random_pair, statistics(pair, None))
    assert statistics(pair, statistics(random_pair, None)) == pytest.approx(whole, abs=1e-15)


def test_without_a_shift_it_is_bco_pair(random_pair):
    expected = bco_pair(random_pair, beta=0.7)
    for value, other in zip(bco(random_pair, beta=0.7, statistics={"delta": 0.0, "count": 9}), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-15)


def test_delta_has_no_gradient(make_pair):
    """Rewards 2, 1 chosen, 0.5, -1.5 rejected, delta 0.5: slopes -0.5 sigmoid(-(r - 0.5)) and 0.5 sigmoid(r - 0.5)."""
    pair = make_pair([[4.0], [2.0]], [[1.0], [-3.0]], [[0.0], [0.0]], [[0.0], [0.0]])
    sides = pair.chosen.per_token_logps, pair.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(bco(pair, beta=0.5).losses.sum(), sides)
    assert chosen[:, 0].tolist() == pytest.approx([-0.5 / (1 + math.exp(r)) for r in (1.5, 0.5)], abs=1e-15)
    assert rejected[:, 0].tolist() == pytest.approx([0.5 / (1 + math.exp(-r)) for r in (0.0, -2.0)], abs=1e-15)


def test_a_beta_of_zero_is_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        bco(worked, beta=0)
