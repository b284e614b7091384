"""Beta-DPO: moving averages by hand, what is drawn and how often, the batch's beta, no gradient through it."""

import json
import math
from collections import Counter
from itertools import combinations

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.beta_dpo import _draw, beta_dpo, statistics
from trainers.objectives.dpo import dpo


@pytest.fixture
def margins(make_pair):
    """Pairs of one token whose margins D are the given numbers."""

    def make(*values: float):
        zero = [[0.0]] * len(values)
        return make_pair([[value] for value in values], zero, zero, zero)

    return make


def test_worked_value(worked):
    """One pair, always kept: D = 3, M = 0.1 * 3, b = 0.1 (1 + 0.6 * 2.7) = 0.262; L(0.786) = log(1.4556638)."""
    output = beta_dpo(worked)
    assert output.losses.tolist() == pytest.approx([0.3754620234342842], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_statistics_over_two_batches(margins):
    """1..5: mean 3, std sqrt(10 / 4); 0, 2: mean 1, std sqrt(2). M: 0.3, then 0.27 + 0.1 = 0.37."""
    one = statistics(margins(1.0, 2.0, 3.0, 4.0, 5.0), None)
    assert one == pytest.approx({"mean": 0.3, "std": 0.1 * math.sqrt(2.5), "count": 1}, abs=1e-15)
    two = statistics(margins(0.0, 2.0), one)
    std = 0.09 * math.sqrt(2.5) + 0.1 * math.sqrt(2)
    assert two == pytest.approx({"mean": 0.37, "std": std, "count": 2}, abs=1e-15)
    assert statistics(margins(7.0), None, gamma=0.5) == {"mean": 3.5, "std": 0.0, "count": 1}


def test_losses_of_the_kept_average_to_their_mean_at_the_batch_beta(margins):
    values = [1.0, -2.0, 3.0, 0.5, 9.0]
    losses = beta_dpo(margins(*values), statistics={"mean": 0.8, "std": 1.5, "count": 3}).losses.tolist()
    kept = [value for value, loss in zip(values, losses, strict=True) if loss]
    beta = 0.1 * (1 + 0.6 * (sum(kept) / 4 - 0.8))
    assert len(kept) == 4
    for value, loss in zip(values, losses, strict=True):
        assert loss == (pytest.approx(math.log1p(math.exp(-beta * value)) * 5 / 4, abs=1e-14) if value in kept else 0)
    mean = sum(math.log1p(math.exp(-beta * value)) for value in kept) / 4
    assert sum(losses) / 5 == pytest.approx(mean, abs=1e-14)


def test_two_of_three_are_drawn_without_replacement_by_their_weights():
    """P(i and j) = p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j), p = weights exp(-d^2 / 2) over their sum."""
    values = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    n = 4000
    drawn = Counter(
        tuple(_draw(values, {"mean": 0, "std": 1, "count": i}, 2, 0).nonzero()[:, 0].tolist()) for i in range(n)
    )
    weights = [math.exp(-(d**2) / 2) for d in (0, 1, 2)]
    p = [w / sum(weights) for w in weights]
    for i, j in combinations(range(3), 2):
        expected = p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j]))
        assert drawn[i, j] / n == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))


def test_each_update_draws_anew_and_a_resumed_run_draws_the_same(margins):
    pair = margins(*[0.1 * i for i in range(10)])
    state = {"mean": 0.4, "std": 0.3, "count": 1}

    def kept(**options) -> list[bool]:
        return (beta_dpo(pair, rho=0.5, **options).losses != 0).tolist()

    assert sum(kept(statistics=state)) == 5
    assert kept(statistics=json.loads(json.dumps(state))) == kept(statistics=state)
    assert len({tuple(kept(statistics={**state, "count": i})) for i in range(8)}) > 4
    assert len({tuple(kept(statistics=state, seed=i)) for i in range(8)}) > 4


def test_the_order_of_pairs_changes_nothing_pair_by_pair(margins):
    values = [1.0, -2.0, 3.0, 0.5, 9.0, 2.5]
    there, back = beta_dpo(margins(*values), rho=0.4).losses, beta_dpo(margins(*values[::-1]), rho=0.4).losses
    torch.testing.assert_close(there, back.flip(0), rtol=0, atol=1e-14)


def test_equal_margins_and_far_outliers_keep_their_number(margins):
    """S = 0 where policy = reference; and weights that vanish in float64 still rank the pairs."""
    assert sorted(beta_dpo(margins(0.0, 0.0, 0.0, 0.0, 0.0)).losses.tolist()) == pytest.approx(
        [0] + [math.log(2) * 1.25] * 4
    )
    far = beta_dpo(margins(1e4, -1e4, 9e3, -9e3, 1.0), statistics={"mean": 0.0, "std": 0.1, "count": 1}).losses
    assert (far != 0).sum() >= 3  # losses far on the right side are 0 too
    assert far.isfinite().all()


def test_is_dpo_without_filter_and_adaptation(random_pair):
    for value, other in zip(beta_dpo(random_pair, a=0.0, rho=0.0, beta=0.3), dpo(random_pair, beta=0.3), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-15)


def test_beta_has_a_floor_and_no_gradient(margins):
    """Far below the mean: b = 1e-3. Slope -b sigmoid(-b D) with b held: 0.1 (1 + 0.6 * 2) = 0.22 at D = 2, M = 0."""
    assert beta_dpo(margins(-9.0), statistics={"mean": 50.0, "std": 1.0}).losses.item() == pytest.approx(
        math.log1p(math.exp(0.009)), abs=1e-14
    )
    pair = margins(2.0)
    loss = beta_dpo(pair, statistics={"mean": 0.0, "std": 1.0}).losses.sum()
    (slope,) = torch.autograd.grad(loss, pair.chosen.per_token_logps)
    assert slope.item() == pytest.approx(-0.22 / (1 + math.exp(0.44)), abs=1e-15)


@pytest.mark.parametrize(("name", "value"), [("beta", 0), ("a", -1), ("rho", 1), ("gamma", 1), ("seed", -1)])
def test_wrong_hyperparameters_are_refused_by_name(worked, name, value):
    with pytest.raises(UserError, match=f"{name} is {value}"):
        beta_dpo(worked, **{name: value})
