"""EXO for pairs: a worked value, the KL it is, its target, the authors' constants."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from diagnostics.errors import UserError
from trainers.objectives.dpo import dpo
from trainers.objectives.exo_pair import exo_pair


def test_worked_value(worked):
    """a = sigmoid(0.3) = 0.5744425: a * (log a - log 0.999) + (1 - a) * (log(1 - a) - log 0.001) = 2.2581992."""
    output = exo_pair(worked)
    assert output.losses.tolist() == pytest.approx([2.25819919150928], abs=1e-13)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_is_the_kl_of_the_policys_preference_from_the_label(random_pair):
    plain = dpo(random_pair, beta=0.3)
    preference = Bernoulli(logits=plain.chosen_rewards - plain.rejected_rewards)
    expected = kl_divergence(preference, Bernoulli(torch.tensor(0.8, dtype=torch.float64)))
    ours = exo_pair(random_pair, beta=0.3, label_smoothing=0.2).losses.detach()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_nothing_is_left_at_the_margin_of_the_label(make_pair):
    margin = math.log(0.9 / 0.1) / 0.1
    pair = make_pair([[margin]], [[0.0]], [[0.0]], [[0.0]])
    losses = exo_pair(pair, beta=0.1, label_smoothing=0.1).losses
    (slope,) = torch.autograd.grad(losses.sum(), pair.chosen.per_token_logps)
    assert abs(losses.item()) < 1e-15
    assert abs(slope.item()) < 1e-15


def test_differs_from_the_authors_constants_by_less_than_e(random_pair):
    """log 1 and -10 for log(1 - e) and log e at e = exp(-10): the losses differ by -a * log(1 - e)."""
    e = math.exp(-10)
    plain = dpo(random_pair, beta=0.3)
    x = plain.chosen_rewards - plain.rejected_rewards
    a = torch.sigmoid(x)
    authors = a * torch.log(a) + (1 - a) * (torch.log(1 - a) + 10)
    gap = exo_pair(random_pair, beta=0.3, label_smoothing=e).losses.detach() - authors
    torch.testing.assert_close(gap, -a * math.log1p(-e), rtol=0, atol=1e-12)


@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_far_margins_end_at_the_log_of_the_label(make_pair, margin):
    """a = 0: -log e; a = 1: -log(1 - e)."""
    losses = exo_pair(make_pair([[margin]], [[0.0]], [[0.0]], [[0.0]])).losses
    assert losses.item() == pytest.approx(-math.log(1e-3) if margin < 0 else -math.log1p(-1e-3), rel=1e-13)


@pytest.mark.parametrize(("name", "value"), [("beta", 0), ("label_smoothing", 0), ("label_smoothing", 0.5)])
def test_wrong_hyperparameters_are_refused_by_name(worked, name, value):
    with pytest.raises(UserError, match=f"{name} is"):
        exo_pair(worked, **{name: value})
