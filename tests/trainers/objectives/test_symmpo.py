"""SymMPO: a worked value and its gradients on all five rows, DPO, its start, the two pictures are alike in it."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.symmpo import ROWS, symmpo


@pytest.fixture
def five(worked, add_rows) -> PairStats:
    """The worked pair, h(m1, y_w) = 1 and h(m1, y_l) = -2, with h(m1, y_2) = -3 + 2 = -1, h(m2, y_2) = -2 + 2.5 = 0.5
    and h(m2, y_w) = -2.5 + 2 = -0.5: z1 = 1 + 1 = 2, z2 = 0.5 + 0.5 = 1."""
    return add_rows(
        worked,
        second_answer=([[-3.0]], [[-2.0]]),
        second_chosen=([[-1.0, -1.0]], [[-1.0, -1.5]]),
        second_rejected=([[-2.5]], [[-2.0]]),
    )


def test_worked_value_and_gradients(five):
    """With s(z) = log(1 + e^(-z / 10)): s(3) = 0.5543552, s(2) = 0.5981389, s(1) = 0.6443967, s(0.5) = 0.6684596.

    s(3) + (s(2) + s(1)) / 2 + s(1) + s(0.5) + 0.0001 * (2 - 1)^2. Slopes s'(z) = -0.1 / (1 + e^(z / 10)).
    """
    output = symmpo(five)
    assert output.losses.tolist() == pytest.approx([2.4885793172829658], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)

    def slope(z):
        return -0.1 / (1 + math.exp(z / 10))

    z1, z2 = 0.5 * slope(2) + 2e-4, 0.5 * slope(1) - 2e-4
    expected = [slope(3) + z1 + slope(1), -slope(3), -z1, z2 + slope(0.5), -z2]
    rows = [five.chosen, five.rejected, *(five.extra[name] for name in ROWS)]
    found = torch.autograd.grad(output.losses.sum(), [row.per_token_logps for row in rows])
    for gradient, value in zip(found, expected, strict=True):
        assert gradient.flatten().tolist() == pytest.approx([value] * gradient.numel(), abs=1e-15)


def test_without_its_further_terms_it_is_dpo_whatever_the_second_picture(five):
    plain = symmpo(five, beta=0.3, symmetric=0, anchor=0, consistency=0)
    for value, expected in zip(plain, dpo(five, beta=0.3), strict=True):
        assert value.tolist() == expected.tolist()


def test_it_starts_at_four_log_2(random_pair, same_rows):
    """Policy = reference: s(0) of the pair, half of two margins, and two anchors."""
    start = replace(random_pair, ref_chosen=random_pair.chosen, ref_rejected=random_pair.rejected)
    losses = symmpo(same_rows(start, ROWS)).losses
    assert losses.tolist() == pytest.approx([4 * math.log(2)] * 4, abs=1e-14)


def test_margins_and_anchors_do_not_care_which_picture_is_first(five):
    """Both pictures and answers swapped: all but the first term, which has y_l, is the same."""
    rows = five.extra, five.ref_extra
    own, ref = (
        {"second_answer": r["second_rejected"], "second_chosen": side, "second_rejected": r["second_answer"]}
        for r, side in zip(rows, (five.chosen, five.ref_chosen), strict=True)
    )
    first = {"chosen": rows[0]["second_chosen"], "ref_chosen": rows[1]["second_chosen"]}
    swapped = replace(five, **first, extra=own, ref_extra=ref)
    rest = [symmpo(p).losses - dpo(p).losses for p in (five, swapped)]
    assert rest[0].tolist() == pytest.approx(rest[1].tolist(), abs=1e-14)


def test_wrong_hyperparameters_and_missing_rows_are_refused_by_name(five, worked):
    for wrong in ({"beta": 0}, {"symmetric": -1}, {"anchor": -1}, {"consistency": -1}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is "):
            symmpo(five, **wrong)
    with pytest.raises(UserError, match="the row 'second_chosen', which the data does not have"):
        symmpo(worked)
    with pytest.raises(UserError, match="'reference'"):
        symmpo(replace(five, ref_extra={}))
