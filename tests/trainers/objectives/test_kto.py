"""KTO: a worked value, the drift z, weights, the missing column."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.kto import kto, statistics


def drift(pair, *values: float):
    return replace(pair, columns={"mismatched_logratios": torch.tensor(values)})


def test_worked_value_and_gradient(worked):
    """z = 0.5; beta 0.1: (1 - sigmoid(0.05) + 1 - sigmoid(0.25)) / 2 = (0.4875026 + 0.4378234) / 2 = 0.4626631.

    Slopes -+ 0.1 s (1 - s) / 2 with s = sigmoid(0.05) for chosen, sigmoid(0.25) for rejected tokens.
    """
    pair = drift(worked, 0.5)
    output = kto(pair, beta=0.1)
    assert output.losses.tolist() == pytest.approx([0.4626630513149958], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    sides = pair.chosen.per_token_logps, pair.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    s, t = 0.5124973964842103, 0.5621765008857981
    assert chosen.tolist() == [pytest.approx([-0.05 * s * (1 - s)] * 2, abs=1e-15)]
    assert rejected.tolist() == [pytest.approx([0.05 * t * (1 - t)] * 3, abs=1e-15)]


def test_the_mean_over_pairs_is_the_mean_over_both_kinds_of_answers(random_pair):
    pair = drift(random_pair, 1.0, 2.0, -0.5, 0.7)
    output = kto(pair, beta=0.4, desirable_weight=2.0, undesirable_weight=0.5)
    z = 0.4 * (1.0 + 2.0 - 0.5 + 0.7) / 4
    terms = [2.0 * (1 - 1 / (1 + math.exp(z - r))) for r in output.chosen_rewards.tolist()]
    terms += [0.5 * (1 - 1 / (1 + math.exp(r - z))) for r in output.rejected_rewards.tolist()]
    assert output.losses.mean().item() == pytest.approx(sum(terms) / 8, abs=1e-7)  # the column is float32


def test_z_is_the_mean_over_the_batch_and_never_negative(random_pair):
    """(3 - 1 + 0 + 2) / 4 = 1; (-3 - 1 + 0 + 2) / 4 < 0 gives 0. The batch before does not count."""
    assert statistics(drift(random_pair, 3.0, -1.0, 0.0, 2.0), None) == {"kl": 1.0}
    assert statistics(drift(random_pair, -3.0, -1.0, 0.0, 2.0), {"kl": 7.0}) == {"kl": 0.0}


def test_given_statistics_take_the_place_of_the_column(worked):
    assert kto(worked, statistics={"kl": 0.5}).losses.item() == kto(drift(worked, 0.5)).losses.item()


def test_half_where_policy_is_the_reference(random_pair):
    same = replace(random_pair, ref_chosen=random_pair.chosen, ref_rejected=random_pair.rejected)
    assert kto(drift(same, 0.0, 0.0, 0.0, 0.0)).losses.tolist() == [0.5] * 4


def test_without_the_column_it_is_refused_by_name(worked):
    with pytest.raises(UserError, match="'mismatched_logratios'"):
        kto(worked)


@pytest.mark.parametrize(("name", "value"), [("beta", 0), ("desirable_weight", -1), ("undesirable_weight", -1)])
def test_wrong_hyperparameters_are_refused_by_name(worked, name, value):
    with pytest.raises(UserError, match=f"{name} is {value}"):
        kto(drift(worked, 0.5), **{name: value})
