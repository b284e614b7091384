"""LeanPO: worked values of rightly and wrongly ranked pairs, where it is SimPO, batch statistics."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.leanpo import leanpo, statistics
from trainers.objectives.simpo import simpo


def turn(pair: PairStats) -> PairStats:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def test_worked_value_of_a_rightly_ranked_pair(worked):
    """z = 2 * (-1.5 + 2) = 1 > 0: no smoothing; log(1 + e^-1) + 0.5 * 3 / 2. Rewards 2 * -1.5 and 2 * -2."""
    output = leanpo(worked)
    assert output.losses.tolist() == pytest.approx([1.0632616875182228], abs=1e-14)
    assert output.chosen_rewards.tolist() == [-3.0]
    assert output.rejected_rewards.tolist() == [-4.0]


def test_worked_value_and_gradient_of_a_wrongly_ranked_pair(worked):
    """z = -1, margin 0.5: 0.9 log(1 + e^1.5) + 0.1 log(1 + e^-0.5) + 0.5 * 6 / 3; the turned term has -margin too.

    Slope in z: -0.9 / (1 + e^-1.5) + 0.1 / (1 + e^0.5) = -0.6980630; times 2 / 3 a chosen token, less 0.5 / 3.
    """
    pair = turn(worked)
    output = leanpo(pair, margin=0.5)
    assert output.losses.tolist() == pytest.approx([2.578679648602488], abs=1e-14)
    sides = pair.chosen.per_token_logps, pair.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    assert chosen[0].tolist() == pytest.approx([-0.6980629616944648 * 2 / 3 - 0.5 / 3] * 3, abs=1e-14)
    assert rejected[0].tolist() == pytest.approx([0.6980629616944648] * 2, abs=1e-14)


def test_plain_smoothing_is_for_every_pair(worked):
    """0.9 log(1 + e^-1) + 0.1 log(1 + e^1) + 0.75; a wrongly ranked pair is smoothed either way."""
    assert leanpo(worked, dynamic=False).losses.tolist() == pytest.approx([1.163261687518223], abs=1e-14)
    wrong = turn(worked)
    assert leanpo(wrong, dynamic=False).losses.tolist() == leanpo(wrong).losses.tolist()


@pytest.mark.parametrize("margin", [0.0, 0.8])
def test_is_simpo_without_smoothing_and_sft_also_in_gradients(random_pair, margin):
    output = leanpo(random_pair, beta=2.5, label_smoothing=0, alpha=0, margin=margin)
    plain = simpo(random_pair, beta=2.5, gamma_beta_ratio=margin / 2.5)
    for value, other in zip(output, plain, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-13, atol=0)
    sides = random_pair.chosen.per_token_logps, random_pair.rejected.per_token_logps
    for one, two in zip(*(torch.autograd.grad(o.losses.sum(), sides) for o in (output, plain)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=0)


def test_the_mean_of_the_sft_term_is_the_mean_over_all_chosen_tokens(random_pair):
    """Lengths 2, 5, 1 and 3: 11 tokens."""
    added = leanpo(random_pair, alpha=1.0).losses.mean() - leanpo(random_pair, alpha=0).losses.mean()
    expected = -random_pair.chosen.per_token_logps.nansum() / 11
    assert added.item() == pytest.approx(expected.item(), rel=1e-12)


def test_statistics_of_the_whole_batch_make_micro_batches_the_batch(make_pair):
    """Chosen lengths 2 and 1: 1.5 tokens a pair, whatever came before."""
    chosen, rejected = [[-1.0, -2.0], [-4.0]], [[-2.0], [-1.0]]
    whole = make_pair(chosen, rejected)
    assert statistics(whole, {"chosen_length": 9.0}) == {"chosen_length": 1.5}
    parts = [
        leanpo(make_pair(chosen[i : i + 1], rejected[i : i + 1]), statistics=statistics(whole, None)).losses.item()
        for i in (0, 1)
    ]
    assert parts == leanpo(whole).losses.tolist()


def test_an_empty_completion_gives_nan_for_its_pair_alone(make_pair):
    assert leanpo(make_pair([[], [-1.0]], [[-1.0], [-2.0]])).losses.isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "beta is 0"),
        ({"label_smoothing": 0.5}, r"label_smoothing is 0\.5"),
        ({"margin": -1}, "margin is -1"),
        ({"alpha": -1}, "alpha is -1"),
    ],
)
def test_wrong_hyperparameters_are_refused_by_name(worked, options, message):
    with pytest.raises(UserError, match=message):
        leanpo(worked, **options)
