"""MODPO: worked values with one and three other objectives, DPO at full weight, shapes of columns."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.modpo import modpo


def scored(pair: PairStats, chosen: list, rejected: list) -> PairStats:
    columns = {"chosen_other": chosen, "rejected_other": rejected}
    return replace(pair, columns={name: torch.tensor(v, dtype=torch.float64) for name, v in columns.items()})


def test_worked_value_of_one_other_objective(worked):
    """(0.3 - 0.5 * (0.4 - 0.1)) / 0.5 = 0.3: log(1 + e^-0.3). Rewards (0.1 - 0.2) / 0.5 and (-0.2 - 0.05) / 0.5."""
    output = modpo(scored(worked, [0.4], [0.1]))
    assert output.losses.tolist() == pytest.approx([0.5543552444685271], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.5], abs=1e-15)


def test_worked_value_of_three_others_that_share_the_rest(worked):
    """Weight 0.25 leaves 0.25 for each: (0.3 - 0.25 * (0.3 + 1 - 0.6)) / 0.25 = 0.5; log(1 + e^-0.5)."""
    output = modpo(scored(worked, [[0.4, 1.0, 0.0]], [[0.1, 0.0, 0.6]]), weight=0.25)
    assert output.losses.tolist() == pytest.approx([0.4740769841801067], abs=1e-14)


def test_is_dpo_at_full_weight_and_where_others_see_no_difference(random_pair):
    other = [0.3, -2.0, 5.0, 0.0]
    full = modpo(scored(random_pair, other, [0.0] * 4), beta=0.3, weight=1)
    for value, expected in zip(full, dpo(random_pair, beta=0.3), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    blind = modpo(scored(random_pair, other, other), beta=0.3, weight=0.5).losses
    torch.testing.assert_close(blind, dpo(random_pair, beta=0.6).losses, rtol=1e-12, atol=0)


def test_one_other_may_be_a_row_of_one(random_pair):
    chosen, rejected = [0.3, -2.0, 5.0, 0.0], [1.0, 0.0, 0.5, 0.1]
    flat = modpo(scored(random_pair, chosen, rejected))
    rows = modpo(scored(random_pair, [[c] for c in chosen], [[r] for r in rejected]))
    for value, other in zip(flat, rows, strict=True):
        assert value.tolist() == other.tolist()


def test_wrong_hyperparameters_are_refused_by_name(worked):
    for wrong in ({"beta": 0}, {"weight": 0}, {"weight": 1.5}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is "):
            modpo(scored(worked, [0.4], [0.1]), **wrong)
