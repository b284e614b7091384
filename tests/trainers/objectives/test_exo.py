"""EXO on rewards: a worked value, lists by hand, no loss at the target."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.exo import exo


def by_hand(answers) -> float:
    """beta 0.5, beta_r 0.7."""
    t, g = ([math.exp(s / 0.7) for *_, s in answers], [math.exp(0.5 * (p - q)) for p, q, _ in answers])
    return sum(y / sum(g) * math.log(y / sum(g) * sum(t) / x) for x, y in zip(t, g, strict=True))


def scored(pair, chosen: float, rejected: float):
    columns = {"chosen_score": torch.tensor([chosen]), "rejected_score": torch.tensor([rejected])}
    return replace(pair, columns=columns)


def test_worked_value(worked):
    """beta 0.1: g = sigmoid(0.3) = 0.5744425; scores 1 and 0, beta_r 1: t = 0.7310586.

    0.5744425 log(0.5744425 / 0.7310586) + 0.4255575 log(0.4255575 / 0.2689414) = 0.0567967.
    """
    output = exo(scored(worked, 1.0, 0.0), beta=0.1, beta_r=1.0)
    assert output.losses.tolist() == pytest.approx([0.056796681281534395], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_lists(check_lists):
    check_lists(partial(exo, beta=0.5, beta_r=0.7), by_hand)


def test_is_the_pairwise_exo_with_smoothed_targets(worked):
    """Score gap beta_r * log((1 - e) / e) makes t = (1 - e, e); a = sigmoid(0.3), e = 0.01."""
    a, e = 0.574442516811659, 0.01
    expected = a * (math.log(a) - math.log(1 - e)) + (1 - a) * (math.log(1 - a) - math.log(e))
    columns = {"chosen_score": [0.2 * math.log((1 - e) / e)], "rejected_score": [0.0]}
    pair = replace(worked, columns={k: torch.tensor(v, dtype=torch.float64) for k, v in columns.items()})
    assert exo(pair, beta=0.1, beta_r=0.2).losses.tolist() == pytest.approx([expected], abs=1e-13)


def test_no_loss_and_no_gradient_where_rewards_differ_as_the_scores_do(worked):
    """beta * (u - v) = 0.1 * 3 = score gap / beta_r = 0.15 / 0.5."""
    columns = {k: torch.tensor([v], dtype=torch.float64) for k, v in (("chosen_score", 0.15), ("rejected_score", 0.0))}
    pair = replace(worked, columns=columns)
    losses = exo(pair, beta=0.1, beta_r=0.5).losses
    (slope,) = torch.autograd.grad(losses.sum(), pair.chosen.per_token_logps)
    assert losses.item() == pytest.approx(0, abs=1e-15)
    assert slope.abs().max().item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("name", ["beta", "beta_r"])
def test_wrong_hyperparameters_are_refused_by_name(worked, name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        exo(worked, **{name: 0})
