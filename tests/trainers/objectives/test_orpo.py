"""ORPO: a worked value, log odds near 0 and far below, its parts, empty completions."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.orpo import orpo


def slopes(losses, pair):
    return torch.autograd.grad(losses.sum(), (pair.chosen.per_token_logps, pair.rejected.per_token_logps))


def test_worked_value(worked):
    """Means -1.5 and -2: odds -1.2475175 and -1.8545865, log(1 + e^-0.6070690) = 0.4349888; 1.5 + 0.1 times it."""
    output = orpo(worked, beta=0.1)
    assert output.losses.tolist() == pytest.approx([1.543498880687054], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.15], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_without_odds_it_is_the_likelihood_of_the_chosen_token_by_token(worked):
    losses = orpo(worked, beta=0).losses
    assert losses.tolist() == [1.5]
    chosen, rejected = slopes(losses, worked)
    assert chosen.tolist() == [[-0.5, -0.5]]
    assert rejected.tolist() == [[0.0, 0.0, 0.0]]


def test_batch_token_mean_is_the_mean_over_all_chosen_tokens_of_the_batch(make_pair):
    """3 and 4 nats in 3 tokens of 2 pairs: 3 * 2/3 = 2 and 4 * 2/3 = 8/3. The odds stay those of each pair's means."""
    pair = make_pair([[-1.0, -2.0], [-4.0]], [[-3.0], [-4.0]])
    assert orpo(pair, beta=0, normalization="batch_token_mean").losses.tolist() == pytest.approx([2, 8 / 3], abs=1e-14)
    by_pair, by_batch = (orpo(pair, normalization=way).losses for way in ("sequence_mean", "batch_token_mean"))
    assert (by_batch - by_pair).tolist() == pytest.approx([2 - 1.5, 8 / 3 - 4], abs=1e-13)


def test_the_odds_ratio_is_that_of_plain_probabilities(make_pair):
    """Probabilities 3/4 and 1/5: odds 3 and 1/4, ratio 12, -log(12 / 13)."""
    pair = make_pair([[math.log(0.75)]], [[math.log(0.2)]])
    assert orpo(pair, beta=1.0).losses.item() == pytest.approx(-math.log(0.75) + math.log(13 / 12), abs=1e-14)


@pytest.mark.parametrize("p", [-1e-11, -1e-6, -0.5, -40.0, -1e4])
def test_the_odds_keep_their_digits_near_0_and_far_below(make_pair, p):
    """Against the odds 1 of probability 1/2, in value log(1 + e^-o) and slope -1 / (1 - e^p) / (1 + e^o).

    For p near 0, o = log(1 / -p) up to p / 2; far below, o = p.
    """
    pair = make_pair([[p]], [[math.log(0.5)]])
    losses = orpo(pair, beta=1.0).losses
    odds = p - math.log(-math.expm1(p))
    expected = math.log1p(math.exp(-odds)) if odds > -700 else -odds
    assert (losses.item() + p) == pytest.approx(expected, rel=1e-9, abs=1e-15)
    if p > -1:  # as the rejected answer its odds stand alone: log 2 + log(1 + e^o), where 1 - exp(p) would lose digits
        other = orpo(make_pair([[math.log(0.5)]], [[p]]), beta=1.0).losses.item()
        assert other == pytest.approx(math.log(2) + math.log1p(math.exp(odds)), rel=1e-13)
    slope = -1 - 1 / -math.expm1(p) / (1 + math.exp(odds))
    assert slopes(losses, pair)[0].item() == pytest.approx(slope, rel=1e-12)


def test_a_certain_answer_has_a_finite_loss_and_no_broken_gradient(make_pair):
    for pair in (make_pair([[0.0]], [[-1.0]]), make_pair([[-1.0]], [[0.0]]), make_pair([[0.0]], [[0.0]])):
        losses = orpo(pair).losses
        assert losses.isfinite().all()
        assert all(slope.isfinite().all() for slope in slopes(losses, pair))


def test_an_empty_completion_gives_nan_for_its_pair_alone_and_no_reference_is_read(make_pair, worked):
    assert orpo(make_pair([[], [-1.0]], [[-1.0], [-2.0]])).losses.isnan().tolist() == [True, False]
    assert orpo(PairStats(worked.chosen, worked.rejected)).losses.tolist() == orpo(worked).losses.tolist()


@pytest.mark.parametrize(("name", "value"), [("beta", -1), ("normalization", "sum")])
def test_wrong_hyperparameters_are_refused_by_name(worked, name, value):
    with pytest.raises(UserError, match=f"{name} is"):
        orpo(worked, **{name: value})
