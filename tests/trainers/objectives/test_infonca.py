"""InfoNCA: a worked value, lists by hand, DPO where the scores are far apart, weight of a list."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.dpo import dpo
from trainers.objectives.infonca import infonca

# list 7: answers 0-3, 1 twice chosen and 3 also rejected; list 3: three answers; list 5: the same answer on both sides
ROWS = [(7, 1, 0), (3, 0, 2), (7, 1, 3), (5, 0, 0), (7, 3, 2), (3, 0, 1)]
# (list, answer): log-prob, reference's log-prob, score
ANSWERS = {
    (7, 0): (-3.0, -2.0, 0.5),
    (7, 1): (-1.0, -2.5, 2.0),
    (7, 2): (-4.0, -3.0, 0.0),
    (7, 3): (-2.0, -2.5, 1.0),
    (3, 0): (-1.0, -0.5, 3.0),
    (3, 1): (-6.0, -4.0, 1.5),
    (3, 2): (-2.0, -4.0, 0.2),
    (5, 0): (-1.0, -1.5, 1.0),
}


@pytest.fixture
def listed(make_pair):
    """Some of the ROWS, in a given order, as a batch of one-token answers with the columns of lists."""

    def make(order):
        sides = [[ANSWERS[ROWS[row][0], ROWS[row][k]] for row in order] for k in (1, 2)]
        pair = make_pair(*([[answer[i]] for answer in side] for i in (0, 1) for side in sides))
        named = dict(zip(("list", "chosen_item", "rejected_item"), zip(*(ROWS[row] for row in order))))
        named |= {f"{k}_score": [a[2] for a in side] for k, side in zip(("chosen", "rejected"), sides)}
        return replace(pair, columns={k: torch.tensor(v, dtype=torch.float64) for k, v in named.items()})

    return make


def by_hand(answers) -> float:
    """beta 0.5, temperature 0.7."""
    a, r = ([math.exp(s / 0.7) for *_, s in answers], [math.exp(0.5 * (p - q)) for p, q, _ in answers])
    return -sum(x / sum(a) * math.log(y / sum(r)) for x, y in zip(a, r, strict=True))


def scored(pair, chosen: float, rejected: float):
    columns = {"chosen_score": torch.tensor([chosen]), "rejected_score": torch.tensor([rejected])}
    return replace(pair, columns=columns)


def test_worked_value(worked):
    """beta 0.1: r = 0.1, -0.2; scores 1 and 0, temperature 1: a = 0.7310586, 0.2689414.

    a_w L(0.3) + a_l (L(0.3) + 0.3) = 0.5543552 + 0.3 * 0.2689414 = 0.6350377.
    """
    output = infonca(scored(worked, 1.0, 0.0), beta=0.1, temperature_alpha=1.0)
    assert output.losses.tolist() == pytest.approx([0.6350376708795257], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_lists_against_plain_python(listed):
    output = infonca(listed(range(6)), beta=0.5, temperature_alpha=0.7)
    expected = {name: by_hand([a for key, a in ANSWERS.items() if key[0] == name]) for name in (7, 3, 5)}
    assert output.losses.tolist() == pytest.approx([expected[row[0]] for row in ROWS], abs=1e-13)
    assert len(set(expected.values())) == 3


def test_neither_the_order_of_rows_nor_the_other_lists_matter(listed):
    whole = infonca(listed(range(6)), beta=0.5, temperature_alpha=0.7)
    for order in ([5, 4, 3, 2, 1, 0], [4, 2, 0], [1, 5], [3]):
        for value, expected in zip(infonca(listed(order), beta=0.5, temperature_alpha=0.7), whole, strict=True):
            torch.testing.assert_close(value, expected[order], rtol=0, atol=1e-13)


def test_a_list_of_one_answer_is_finite(listed):
    pair = listed([3])
    output = infonca(pair, beta=0.5, temperature_alpha=0.7)
    sides = [pair.chosen.per_token_logps, pair.rejected.per_token_logps]
    gradients = torch.autograd.grad(output.losses.sum(), sides, allow_unused=True)
    assert output.losses.isfinite().all()
    assert all(g is None or g.isfinite().all() for g in gradients)


def test_is_dpo_for_a_pair_with_all_weight_on_the_chosen_answer(random_pair):
    """Scores 1 apart at temperature 1e-4: the other answer's weight is e^-10000 = 0."""
    columns = {"chosen_score": torch.ones(4), "rejected_score": torch.zeros(4)}
    output, expected = infonca(replace(random_pair, columns=columns), beta=0.3), dpo(random_pair, beta=0.3)
    for value, other in zip(output, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-14)


def test_a_list_weighs_as_much_as_it_has_rows_and_an_answer_is_one_item(listed):
    """d (sum of losses) / d (log-prob of an answer) = rows * beta * (softmax(r) - a), at its first place alone."""
    pair = listed(range(6))
    sides = [pair.chosen.per_token_logps, pair.rejected.per_token_logps]
    gradients = torch.autograd.grad(infonca(pair, beta=0.5, temperature_alpha=0.7).losses.sum(), sides)
    found: dict = {}
    for row, (name, *answers) in enumerate(ROWS):
        for answer, side in zip(answers, gradients, strict=True):
            found.setdefault((name, answer), []).append(side[row].item())
    for key, slopes in found.items():
        of_list = {k: a for k, a in ANSWERS.items() if k[0] == key[0]}
        softmax = {k: math.exp(0.5 * (p - q)) for k, (p, q, _) in of_list.items()}
        target = {k: math.exp(s / 0.7) for k, (*_, s) in of_list.items()}
        share = softmax[key] / sum(softmax.values()) - target[key] / sum(target.values())
        rows = sum(row[0] == key[0] for row in ROWS)
        assert sum(slopes) == pytest.approx(rows * 0.5 * share, abs=1e-14)
        assert sum(slope != 0 for slope in slopes) <= 1


@pytest.mark.parametrize("name", ["beta", "temperature_alpha"])
def test_wrong_hyperparameters_are_refused_by_name(worked, name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        infonca(worked, **{name: 0})
