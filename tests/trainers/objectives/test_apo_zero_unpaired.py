"""APO-zero on single answers: a worked value, KTO without drift, weights."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.apo_zero_unpaired import apo_zero_unpaired
from trainers.objectives.kto import kto


def test_worked_value(worked):
    """(1 - sigmoid(0.1) + sigmoid(-0.2)) / 2 = (0.4750208 + 0.4501660) / 2 = 0.4625934."""
    output = apo_zero_unpaired(worked, beta=0.1)
    assert output.losses.tolist() == pytest.approx([0.4625934076042911], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_is_kto_where_the_policy_has_not_drifted(random_pair):
    """A negative mean of mismatched log-ratios counts as 0."""
    pair = replace(random_pair, columns={"mismatched_logratios": torch.tensor([-1.0, -2.0, 0.0, 0.5])})
    options = {"beta": 0.3, "desirable_weight": 2.0, "undesirable_weight": 0.7}
    for value, other in zip(apo_zero_unpaired(random_pair, **options), kto(pair, **options), strict=True):
        assert value.tolist() == other.tolist()


def test_each_weight_scales_its_side(worked):
    """Chosen term 0.4750208125210601, rejected term 0.4501660026875221, each halved."""
    for weights, terms in (((1.0, 0.0), 0.4750208125210601), ((0.0, 1.0), 0.4501660026875221)):
        output = apo_zero_unpaired(worked, desirable_weight=weights[0], undesirable_weight=weights[1])
        assert output.losses.item() == pytest.approx(terms / 2, abs=1e-14)


@pytest.mark.parametrize(("name", "value"), [("beta", 0), ("desirable_weight", -1), ("undesirable_weight", -1)])
def test_wrong_hyperparameters_are_refused_by_name(worked, name, value):
    with pytest.raises(UserError, match=f"{name} is {value}"):
        apo_zero_unpaired(worked, **{name: value})
