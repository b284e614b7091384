"""In-context IRPO: a worked value, lists by hand, two answers and DPO, ties."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from diagnostics.errors import UserError
from trainers import objectives
from trainers.objectives.dpo import dpo
from trainers.objectives.irpo import OPTIONAL_COLUMNS, irpo


def by_hand(answers) -> float:
    """beta 0.5."""
    if len(answers) == 1:
        return 0.0
    ordered = sorted(answers, key=lambda answer: -answer[2])
    s = [math.exp(0.5 * (p - q)) for p, q, _ in ordered]
    terms = []
    for rank, (mine, (*_, relevance)) in enumerate(zip(s, ordered, strict=True), start=1):
        mean = (sum(s) - mine) / mine / (len(s) - 1)
        terms.append((2**relevance - 1) / math.log2(1 + rank) * -math.log(1 / (1 + mean)))
    return sum(terms) / len(s)


def relevant(pair, chosen: float, rejected: float):
    columns = {"chosen_relevance": chosen, "rejected_relevance": rejected}
    n = len(pair.chosen.lengths)
    return replace(pair, columns={k: torch.full((n,), v, dtype=torch.float64) for k, v in columns.items()})


def test_worked_value(worked):
    """Relevances 2 and 1: weights (4 - 1) / log2(2) = 3 and (2 - 1) / log2(3) = 0.6309298; beta 0.1, margin 0.3.

    (3 L(0.3) + 0.6309298 L(-0.3)) / 2 = (1.6630657 + 0.5390381) / 2 = 1.1010519.
    """
    output = irpo(relevant(worked, 2.0, 1.0), beta=0.1)
    assert output.losses.tolist() == pytest.approx([1.1010519386302957], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_lists(check_lists):
    check_lists(partial(irpo, beta=0.5), by_hand)


def test_two_answers_are_half_of_weighted_dpo_both_ways(random_pair):
    """Relevances 1 and 0: exactly half of DPO. In general w_chosen and w_rejected weigh DPO and DPO exchanged."""
    p = random_pair
    there, back = (
        dpo(p, beta=0.3),
        dpo(
            replace(p, chosen=p.rejected, rejected=p.chosen, ref_chosen=p.ref_rejected, ref_rejected=p.ref_chosen),
            beta=0.3,
        ),
    )
    for (chosen, rejected), expected in (
        ((1.0, 0.0), there.losses / 2),
        ((0.0, 1.0), back.losses / 2),
        ((2.0, 1.0), (3 * there.losses + back.losses / math.log2(3)) / 2),
    ):
        output = irpo(relevant(p, chosen, rejected), beta=0.3)
        torch.testing.assert_close(output.losses, expected, rtol=0, atol=1e-13)
        assert output.chosen_rewards.tolist() == there.chosen_rewards.tolist()
    slopes = (
        torch.autograd.grad(x.sum(), p.chosen.per_token_logps, retain_graph=True)[0] for x in (output.losses, expected)
    )
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-14)


def test_ties_rank_in_the_order_of_items_whatever_the_order_of_rows(listed, monkeypatch, list_answers):
    for key in ((7, 0), (7, 2), (7, 3)):
        monkeypatch.setitem(list_answers, key, (*list_answers[key][:2], 1.0))
    expected = by_hand([list_answers[7, i] for i in range(4)])
    for order in ([0, 2, 4], [4, 2, 0], [2, 4, 0]):
        assert irpo(listed(order), beta=0.5).losses.tolist() == pytest.approx([expected] * 3, abs=1e-13)


def ranked(pair, chosen: float, rejected: float):
    columns = {"chosen_rank": chosen, "rejected_rank": rejected}
    return replace(pair, columns=pair.columns | {k: torch.tensor([v]) for k, v in columns.items()})


def test_ranks_of_the_data_come_before_those_by_relevance(worked):
    """Relevances 2 and 1, ranks 3 and 1: weights 3 / log2(4) = 1.5 and 1 / log2(2) = 1.

    (1.5 L(0.3) + L(-0.3)) / 2; ranks 1 and 2 are those by relevance.
    """
    pair = relevant(worked, 2.0, 1.0)
    expected = (1.5 * math.log1p(math.exp(-0.3)) + math.log1p(math.exp(0.3))) / 2
    assert irpo(ranked(pair, 3, 1), beta=0.1).losses.tolist() == pytest.approx([expected], abs=1e-14)
    assert irpo(ranked(pair, 1, 2), beta=0.1).losses.tolist() == irpo(pair, beta=0.1).losses.tolist()


def test_ranks_go_with_the_items_of_lists(listed, list_rows):
    """Ranks by falling relevance, given with the rows, change nothing; turned round in one list, that one alone."""
    place = {(7, 1): 1, (7, 3): 2, (7, 0): 3, (7, 2): 4, (3, 0): 1, (3, 1): 2, (3, 2): 3, (5, 0): 1}
    pair = listed(range(6))
    whole = irpo(pair).losses

    def given(place):
        named = zip(OPTIONAL_COLUMNS, (1, 2), strict=True)
        ranks = {name: torch.tensor([place[row[0], row[k]] for row in list_rows]) for name, k in named}
        return irpo(replace(pair, columns=pair.columns | ranks)).losses

    torch.testing.assert_close(given(place), whole, rtol=0, atol=1e-14)
    turned = given(place | {(3, 0): 3, (3, 2): 1})
    assert [bool(same) for same in (turned - whole).abs() < 1e-12] == [row[0] != 3 for row in list_rows]


def test_wrong_ranks_are_a_sentence(worked):
    pair = relevant(worked, 2.0, 1.0)
    for wrong in (0.0, math.nan):
        with pytest.raises(UserError, match="chosen_rank and rejected_rank must be numbers from 1 on"):
            irpo(ranked(pair, 1.0, wrong))
    with pytest.raises(UserError, match="'rejected_rank'"):
        irpo(replace(pair, columns=pair.columns | {"chosen_rank": torch.ones(1)}))


def test_columns_are_read_in_the_widest_dtype_of_their_device(worked, monkeypatch):
    """MPS has no float64."""
    pair = relevant(worked, 2.0, 1.0)
    assert objectives.column(pair, "chosen_relevance").dtype == torch.float64
    monkeypatch.setattr(objectives, "wide", lambda device: torch.float32)
    assert objectives.column(pair, "chosen_relevance").dtype == torch.float32


@pytest.mark.parametrize("name", ["beta"])
def test_wrong_hyperparameters_are_refused_by_name(worked, name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        irpo(worked, **{name: 0})
