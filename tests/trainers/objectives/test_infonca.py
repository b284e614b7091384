"""InfoNCA: a worked value, lists by hand, DPO where the scores are far apart, weight of a list."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.dpo import dpo
from trainers.objectives.infonca import infonca


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


def test_lists(check_lists):
    check_lists(partial(infonca, beta=0.5, temperature_alpha=0.7), by_hand)


def test_is_dpo_for_a_pair_with_all_weight_on_the_chosen_answer(random_pair):
    """Scores 1 apart at temperature 1e-4: the other answer's weight is e^-10000 = 0."""
    columns = {"chosen_score": torch.ones(4), "rejected_score": torch.zeros(4)}
    output, expected = infonca(replace(random_pair, columns=columns), beta=0.3), dpo(random_pair, beta=0.3)
    for value, other in zip(output, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-14)


def test_a_list_weighs_as_much_as_it_has_rows_and_an_answer_is_one_item(listed, list_rows, list_answers):
    """d (sum of losses) / d (log-prob of an answer) = rows * beta * (softmax(r) - a), at its first place alone."""
    pair = listed(range(6))
    sides = [pair.chosen.per_token_logps, pair.rejected.per_token_logps]
    gradients = torch.autograd.grad(infonca(pair, beta=0.5, temperature_alpha=0.7).losses.sum(), sides)
    found: dict = {}
    for row, (name, *answers) in enumerate(list_rows):
        for answer, side in zip(answers, gradients, strict=True):
            found.setdefault((name, answer), []).append(side[row].item())
    for key, slopes in found.items():
        of_list = {k: a for k, a in list_answers.items() if k[0] == key[0]}
        softmax = {k: math.exp(0.5 * (p - q)) for k, (p, q, _) in of_list.items()}
        target = {k: math.exp(s / 0.7) for k, (*_, s) in of_list.items()}
        share = softmax[key] / sum(softmax.values()) - target[key] / sum(target.values())
        rows = sum(row[0] == key[0] for row in list_rows)
        assert sum(slopes) == pytest.approx(rows * 0.5 * share, abs=1e-14)
        assert sum(slope != 0 for slope in slopes) <= 1


@pytest.mark.parametrize("name", ["beta", "temperature_alpha"])
def test_wrong_hyperparameters_are_refused_by_name(worked, name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        infonca(worked, **{name: 0})
