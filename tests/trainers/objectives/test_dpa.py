"""DPA: a worked value and gradients, how phrases are paired and weighed over the batch, no phrases, padding."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats, SequenceStats
from trainers.objectives.dpa import dpa, statistics

SIDES = ("chosen", "rejected", "ref_chosen", "ref_rejected")


def mark(pair: PairStats, chosen: list[list[int]], rejected: list[list[int]], kl: float = 0.0) -> PairStats:
    """The pair with these phrase numbers and the same KL on every chosen token."""
    marks = torch.tensor(chosen)
    kls = torch.full(marks.shape, kl, dtype=torch.float64, requires_grad=True)
    first = replace(pair.chosen, phrase_mask=marks, per_token_kl=kls)
    return replace(pair, chosen=first, rejected=replace(pair.rejected, phrase_mask=torch.tensor(rejected)))


def test_worked_value_and_gradients(worked):
    """Phrase 1: chosen token 2 (-2) against rejected token 1 (-2): log(1 + e^0), slope 1/2.

    Phrase 2: only rejected token 3 (-3) against nothing (0): log(1 + e^-3), slope 1 / (1 + e^3) = 0.0474259.
    Mean 0.3708673 over two phrases, which halves the slopes, plus 0.4 * (0.25 + 0.25).
    Rewards: log-ratios over phrases, -2 + 2.5 = 0.5 and (-2 + 1) + (-3 + 2) = -2.
    """
    pair = mark(worked, [[0, 1]], [[1, 0, 2]], kl=0.25)
    output = dpa(pair, alpha=0.4)
    assert output.losses.tolist() == pytest.approx([0.5708672660668437], abs=1e-14)
    assert output.chosen_rewards.tolist() == [0.5]
    assert output.rejected_rewards.tolist() == [-2.0]
    leaves = [pair.chosen.per_token_logps, pair.rejected.per_token_logps, pair.chosen.per_token_kl]
    chosen, rejected, kl = torch.autograd.grad(output.losses.sum(), leaves)
    assert chosen[0].tolist() == pytest.approx([0.0, -0.25], abs=1e-15)
    assert rejected[0].tolist() == pytest.approx([0.25, 0.0, 0.02371293658878339], abs=1e-15)
    assert kl.tolist() == [[0.4, 0.4]]


def test_phrases_are_paired_by_number_and_their_tokens_summed(worked):
    """Phrases 1 and 2 of the chosen answer are -1 and -2, of the rejected one -3 - 1 = -4 and -2: by number, not place.

    log(1 + e^(-2 + 1)) and log(1 + e^(-4 + 2)) where the rejected numbers are turned.
    """
    expected = (math.log1p(math.exp(-4 + 1)) + math.log1p(math.exp(-2 + 2))) / 2
    assert dpa(mark(worked, [[1, 2]], [[2, 1, 1]])).losses.tolist() == pytest.approx([expected], abs=1e-14)
    turned = (math.log1p(math.exp(-2 + 1)) + math.log1p(math.exp(-4 + 2))) / 2
    assert dpa(mark(worked, [[1, 2]], [[1, 2, 2]])).losses.tolist() == pytest.approx([turned], abs=1e-14)


def test_a_batch_without_phrases_has_the_kl_alone_and_no_gradient_of_the_contrast(worked):
    pair = mark(worked, [[0, 0]], [[0, 0, 0]], kl=0.25)
    output = dpa(pair, alpha=0.4)
    assert output.losses.tolist() == pytest.approx([0.2], abs=1e-15)
    leaves = [pair.chosen.per_token_logps, pair.rejected.per_token_logps, pair.chosen.per_token_kl]
    chosen, rejected, kl = torch.autograd.grad(output.losses.sum(), leaves, allow_unused=True)
    assert not any(g is not None and g.any() for g in (chosen, rejected))
    assert kl.tolist() == [[0.4, 0.4]]


@pytest.fixture
def ragged(make_pair) -> PairStats:
    """One, three and no phrases, of one token each: -1 against -2, -1, -0.5 and -3, nothing."""
    chosen, rejected = [[-1.0] * 3] * 3, [[-2.0] * 3, [-1.0, -0.5, -3.0], [-2.0] * 3]
    marks = [[1, 0, 0], [1, 2, 3], [0, 0, 0]]
    return mark(make_pair(chosen, rejected, chosen, rejected), marks, marks, kl=0.25)


def test_every_phrase_of_the_batch_weighs_the_same(ragged):
    """4 phrases, 3 pairs: the sums log(1 + e^-1), log 2 + log(1 + e^0.5) + log(1 + e^-2), 0, each times 3/4."""
    terms = [math.log1p(math.exp(x)) for x in (-1, 0, 0.5, -2)]
    losses = dpa(ragged, alpha=0).losses
    assert losses.tolist() == pytest.approx([terms[0] * 0.75, sum(terms[1:]) * 0.75, 0.0], abs=1e-14)
    assert losses.mean().item() == pytest.approx(sum(terms) / 4, abs=1e-14)
    assert dpa(ragged, alpha=0.4).losses[2].item() == pytest.approx(0.4 * 0.75, abs=1e-14)
    sides = [ragged.chosen.per_token_logps, ragged.rejected.per_token_logps]
    chosen, rejected = torch.autograd.grad(losses.mean(), sides)
    slopes = [[-1 / (1 + math.exp(-x)) / 4 for x in row] for row in ([-1], [0, 0.5, -2])]
    assert chosen.tolist() == [pytest.approx(row, abs=1e-15) for row in ([*slopes[0], 0, 0], slopes[1], [0, 0, 0])]
    torch.testing.assert_close(chosen, -rejected, rtol=0, atol=1e-15)


def test_statistics_of_the_whole_batch_make_micro_batches_the_batch(ragged):
    """4 phrases in 3 pairs, whatever came before; pair by pair with them, the mean of the batch is the same."""
    found = statistics(ragged, {"phrases": 9.0})
    assert found == {"phrases": 4 / 3}

    def row(side: SequenceStats, i: int) -> SequenceStats:
        return SequenceStats(**{k: v[i : i + 1] for k, v in vars(side).items() if v is not None})

    singles = [replace(ragged, **{k: row(getattr(ragged, k), i) for k in SIDES}) for i in range(3)]
    assert [statistics(single, None)["phrases"] for single in singles] == [1.0, 3.0, 0.0]
    parts = [dpa(single, statistics=found).losses.item() for single in singles]
    assert parts == pytest.approx(dpa(ragged).losses.tolist(), abs=1e-15)


def test_a_number_that_is_missing_on_both_sides_is_no_phrase(worked):
    assert dpa(mark(worked, [[0, 5]], [[5, 0, 9]])).losses.tolist() == pytest.approx([0.3708672660668436], abs=1e-14)


def test_phrase_numbers_under_padding_do_not_count(make_pair):
    rows = [[-1.0, -2.0], [-4.0]]
    pair = make_pair(rows, rows, rows, rows)
    clean = mark(pair, [[1, 0], [1, 0]], [[0, 1], [0, 0]])
    garbage = mark(pair, [[1, 0], [1, 9]], [[0, 1], [0, 1]])
    assert dpa(clean).losses.tolist() == dpa(garbage).losses.tolist()
    sides = [[p.chosen.per_token_logps, p.rejected.per_token_logps] for p in (clean, garbage)]
    gradients = [torch.autograd.grad(dpa(p).losses.sum(), s) for p, s in zip((clean, garbage), sides, strict=True)]
    for one, two in zip(*gradients, strict=True):
        assert one.tolist() == two.tolist()


def test_wrong_hyperparameters_and_missing_parts_are_refused_by_name(worked):
    pair = mark(worked, [[0, 1]], [[1, 0, 2]])
    with pytest.raises(UserError, match="alpha is -1"):
        dpa(pair, alpha=-1)
    with pytest.raises(UserError, match="phrase_mask, which was not measured"):
        dpa(worked)
    with pytest.raises(UserError, match="'reference'"):
        dpa(replace(pair, ref_chosen=None, ref_rejected=None))


def test_the_kl_is_of_the_row_kl_reference_where_it_is_there(worked):
    """Its own batch of answers: 3 tokens of 0.5 nats, whatever the chosen answer's KL: 0.3708673 + 0.4 * 1.5."""
    pair = mark(worked, [[0, 1]], [[1, 0, 2]], kl=0.25)
    kls = torch.tensor([[0.5, 0.5, 0.5, torch.nan]], dtype=torch.float64, requires_grad=True)
    logps = torch.full((1, 4), -1.0, dtype=torch.float64, requires_grad=True)
    held = SequenceStats(logps, torch.tensor([[1, 1, 1, 0]]), per_token_kl=kls)
    output = dpa(replace(pair, extra={"kl_reference": held}), alpha=0.4)
    assert output.losses.tolist() == pytest.approx([0.3708672660668437 + 0.6], abs=1e-14)
    assert output.chosen_rewards.tolist() == dpa(pair, alpha=0.4).chosen_rewards.tolist()
    leaves = [kls, logps, pair.chosen.per_token_kl]
    kl, row, chosen_kl = torch.autograd.grad(output.losses.sum(), leaves, allow_unused=True)
    assert kl.tolist() == [[0.4, 0.4, 0.4, 0.0]]
    assert row is None
    assert chosen_kl is None
    with pytest.raises(UserError, match="per_token_kl, which was not measured"):
        dpa(replace(pair, extra={"kl_reference": replace(held, per_token_kl=None)}))
