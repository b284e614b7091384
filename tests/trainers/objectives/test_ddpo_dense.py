"""Dense DPO: worked values, where it is DPO, pairs without phrases, padding, empty completions."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.ddpo_dense import ddpo_dense
from trainers.objectives.dpo import dpo


def mark(pair: PairStats, chosen: list[list[int]], rejected: list[list[int]]) -> PairStats:
    return replace(
        pair,
        chosen=replace(pair.chosen, phrase_mask=torch.tensor(chosen)),
        rejected=replace(pair.rejected, phrase_mask=torch.tensor(rejected)),
    )


@pytest.fixture
def pair(worked) -> PairStats:
    """One phrase in the chosen answer (its second token), two in the rejected one (first and third)."""
    return mark(worked, [[0, 1]], [[1, 0, 2]])


def test_worked_value_and_gradients_of_the_paper(pair):
    """f = (0.5 + 5 * 0.5) / (1 + 5) = 0.5; g = (5 * -1 + 0 + 5 * -1) / (1 + 10) = -10/11; margin 31/22.

    Loss log(1 + e^(-0.1 * 31/22)) = 0.6251725. A token's gradient is the slope times its share of the weights.
    """
    output = ddpo_dense(pair, beta=0.1, gamma=5.0)
    assert output.losses.tolist() == pytest.approx([0.6251725059954414], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.05], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-1 / 11], abs=1e-15)
    sides = pair.chosen.per_token_logps, pair.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    slope = -0.1 / (1 + math.exp(3.1 / 22))
    assert chosen[0].tolist() == pytest.approx([slope / 6, slope * 5 / 6], abs=1e-15)
    assert rejected[0].tolist() == pytest.approx([-slope * 5 / 11, -slope / 11, -slope * 5 / 11], abs=1e-15)


def test_worked_value_of_the_sum(pair):
    """3 - -10 = 13: log(1 + e^-1.3)."""
    assert ddpo_dense(pair, gamma=5.0, average=False).losses.tolist() == pytest.approx([0.24100845383299216], abs=1e-14)


def test_gamma_1_without_average_is_dpo_also_in_gradients(pair):
    output, plain = ddpo_dense(pair, beta=0.3, gamma=1.0, average=False), dpo(pair, beta=0.3)
    sides = pair.chosen.per_token_logps, pair.rejected.per_token_logps
    for value, other in zip(output, plain, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-14, atol=0)
    for one, two in zip(*(torch.autograd.grad(o.losses.sum(), sides) for o in (output, plain)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-14, atol=0)


def test_without_phrases_the_average_is_over_tokens_and_gamma_counts_for_nothing(worked):
    """u / 2 = 1/2 and v / 3 = -2/3."""
    output = ddpo_dense(mark(worked, [[0, 0]], [[0, 0, 0]]), beta=1.0, gamma=7.0)
    assert output.chosen_rewards.tolist() == pytest.approx([1 / 2], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-2 / 3], abs=1e-15)


@pytest.mark.parametrize("average", [True, False])
def test_phrase_numbers_under_padding_do_not_count(make_pair, average):
    rows, reference = [[-1.0, -2.0], [-4.0]], [[-0.5, -3.0], [-2.0]]
    pair = make_pair(rows, rows, reference, reference)
    clean, garbage = mark(pair, [[1, 0], [0, 0]], [[0, 1], [1, 0]]), mark(pair, [[1, 0], [0, 1]], [[0, 1], [1, 9]])
    values = [ddpo_dense(p, average=average).losses.tolist() for p in (clean, garbage)]
    assert values[0] == values[1]


def test_an_empty_completion_gives_nan_for_its_pair_alone(make_pair):
    pair = make_pair([[], [-1.0]], [[-1.0], [-2.0]], [[], [-1.0]], [[-1.0], [-2.0]])
    assert ddpo_dense(mark(pair, [[0], [1]], [[0], [1]])).losses.isnan().tolist() == [True, False]


def test_wrong_hyperparameters_and_missing_parts_are_refused_by_name(pair, worked):
    with pytest.raises(UserError, match="gamma is 0"):
        ddpo_dense(pair, gamma=0)
    with pytest.raises(UserError, match="beta is 0"):
        ddpo_dense(pair, beta=0)
    with pytest.raises(UserError, match="phrase_mask, which was not measured"):
        ddpo_dense(worked)
    with pytest.raises(UserError, match="'reference'"):
        ddpo_dense(replace(pair, ref_chosen=None, ref_rejected=None))
