"""RRPO: a worked value and gradients, its ablations, pairs without phrases, padding."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.rrpo import rrpo


def mark(pair: PairStats, chosen: list[list[int]], rejected: list[list[int]]) -> PairStats:
    """The pair with these phrase numbers and a KL of 0.2, 0.3, 0.4, ... nats on the tokens of each side."""

    def side(name: str, rows: list[list[int]]):
        kl = 0.2 + 0.1 * torch.arange(len(rows[0]), dtype=torch.float64).repeat(len(rows), 1)
        return replace(getattr(pair, name), phrase_mask=torch.tensor(rows), per_token_kl=kl.requires_grad_())

    return replace(pair, chosen=side("chosen", chosen), rejected=side("rejected", rejected))


@pytest.fixture
def pair(worked) -> PairStats:
    """One phrase in the chosen answer (its second token), two in the rejected one (first and third)."""
    return mark(worked, [[0, 1]], [[1, 0, 2]])


def leaves(pair: PairStats):
    return [t for s in (pair.chosen, pair.rejected) for t in (s.per_token_logps, s.per_token_kl)]


def test_worked_value_and_gradients(pair):
    """u' = -2 + 2.5 = 0.5; v' = (-2 + 1) + (-3 + 2) = -2; beta 0.1: log(1 + e^-0.25) = 0.5759394.

    Plus 0.01 * (0.2 + 0.3). Phrase tokens get the slope -0.1 / (1 + e^0.25) = -0.0437823 or its opposite, the chosen
    answer's KL 0.01 on every token, the rejected one's nothing. Rewards 0.1 * 0.5 and 0.1 * -2.
    """
    output = rrpo(pair, beta=0.1, alpha=0.01)
    assert output.losses.tolist() == pytest.approx([0.5809394198788437], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.05], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    chosen, chosen_kl, rejected, rejected_kl = torch.autograd.grad(output.losses.sum(), leaves(pair), allow_unused=True)
    assert chosen[0].tolist() == pytest.approx([0.0, -0.043782349911420194], abs=1e-15)
    assert rejected[0].tolist() == pytest.approx([0.043782349911420194, 0.0, 0.043782349911420194], abs=1e-15)
    assert chosen_kl[0].tolist() == [0.01, 0.01]
    assert rejected_kl is None


def test_without_tkl_and_with_every_token_a_phrase_it_is_dpo(worked):
    pair = mark(worked, [[1, 2]], [[3, 1, 1]])
    for value, other in zip(rrpo(pair, beta=0.3, alpha=0), dpo(worked, beta=0.3), strict=True):
        assert value.tolist() == other.tolist()


def test_without_phrases_it_is_dpo_plus_the_kl(pair):
    output = rrpo(pair, beta=0.3, alpha=0.2, phrases=False)
    assert output.losses.tolist() == pytest.approx([dpo(pair, beta=0.3).losses.item() + 0.2 * 0.5], abs=1e-14)


def test_only_which_tokens_are_marked_counts_not_their_numbers(worked):
    one, other = mark(worked, [[0, 1]], [[1, 0, 2]]), mark(worked, [[0, 7]], [[3, 0, 3]])
    assert rrpo(one).losses.tolist() == rrpo(other).losses.tolist()


def test_a_pair_without_phrases_has_log_2_plus_the_kl_and_no_gradient_of_the_margin(worked):
    pair = mark(worked, [[0, 0]], [[0, 0, 0]])
    output = rrpo(pair, alpha=0.01)
    assert output.losses.tolist() == pytest.approx([math.log(2) + 0.01 * 0.5], abs=1e-15)
    assert output.chosen_rewards.tolist() == output.rejected_rewards.tolist() == [0.0]
    chosen, kl, rejected, _ = torch.autograd.grad(output.losses.sum(), leaves(pair), allow_unused=True)
    assert (chosen.tolist(), rejected.tolist()) == ([[0.0, 0.0]], [[0.0, 0.0, 0.0]])
    assert kl.tolist() == [[0.01, 0.01]]


def test_phrase_numbers_under_padding_do_not_count(make_pair):
    rows, reference = [[-1.0, -2.0], [-4.0]], [[-0.5, -3.0], [-2.0]]
    pair = make_pair(rows, rows, reference, reference)
    clean, garbage = mark(pair, [[1, 0], [1, 0]], [[0, 1], [0, 0]]), mark(pair, [[1, 0], [1, 9]], [[0, 1], [0, -5]])
    swallowed = mark(pair, [[1, 0], [1, 1]], [[0, 1], [0, 1]])
    for other in (garbage, swallowed):
        assert rrpo(clean).losses.tolist() == rrpo(other).losses.tolist()
        for one, two in zip(*(torch.autograd.grad(rrpo(p).losses.sum(), leaves(p)[0]) for p in (clean, other))):
            assert one.tolist() == two.tolist()


def test_wrong_hyperparameters_and_missing_parts_are_refused_by_name(pair, worked):
    with pytest.raises(UserError, match="alpha is -1"):
        rrpo(pair, alpha=-1)
    with pytest.raises(UserError, match="beta is 0"):
        rrpo(pair, beta=0)
    with pytest.raises(UserError, match="phrase_mask, which was not measured"):
        rrpo(worked)
    with pytest.raises(UserError, match="per_token_kl, which was not measured"):
        rrpo(worked, phrases=False)
    with pytest.raises(UserError, match="'reference'"):
        rrpo(replace(pair, ref_chosen=None, ref_rejected=None))
