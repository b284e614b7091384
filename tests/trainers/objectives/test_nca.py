"""NCA: a worked value, lists by hand, the pair with all weight on the chosen answer."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.nca import nca


def by_hand(answers) -> float:
    """beta 0.5, temperature 0.7."""
    a, r = ([math.exp(s / 0.7) for *_, s in answers], [0.5 * (p - q) for p, q, _ in answers])
    up = sum(x / sum(a) * math.log1p(math.exp(-y)) for x, y in zip(a, r, strict=True))
    return up + sum(math.log1p(math.exp(y)) for y in r) / len(r)


def scored(pair, chosen: float, rejected: float):
    columns = {"chosen_score": torch.tensor([chosen]), "rejected_score": torch.tensor([rejected])}
    return replace(pair, columns=columns)


def test_worked_value(worked):
    """beta 0.1: r = 0.1, -0.2; scores 1 and 0, temperature 1: a = 0.7310586, 0.2689414.

    0.7310586 L(0.1) + 0.2689414 L(-0.2) + (L(-0.1) + L(0.2)) / 2 = 1.3570121.
    """
    output = nca(scored(worked, 1.0, 0.0), beta=0.1, temperature_alpha=1.0)
    assert output.losses.tolist() == pytest.approx([1.3570120730970148], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_lists(check_lists):
    check_lists(partial(nca, beta=0.5, temperature_alpha=0.7), by_hand)


def test_a_pair_with_all_weight_on_the_chosen_answer(worked):
    """L(0.1) + L(-0.1) / 2 + L(0.2) / 2 = 0.6443967 + 0.3721983 + 0.2990694, the pairwise NCA."""
    expected = math.log1p(math.exp(-0.1)) + (math.log1p(math.exp(0.1)) + math.log1p(math.exp(-0.2))) / 2
    assert nca(scored(worked, 1.0, 0.0), beta=0.1).losses.tolist() == pytest.approx([expected], abs=1e-14)


@pytest.mark.parametrize("name", ["beta", "temperature_alpha"])
def test_wrong_hyperparameters_are_refused_by_name(worked, name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        nca(worked, **{name: 0})
