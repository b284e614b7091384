"""Unpaired AOT: sorted log-ratios by hand, smoothing, pairing does not matter."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import SequenceStats
from trainers.objectives.aot_unpaired import aot_unpaired
from trainers.objectives.dpo import dpo


def test_worked_value(worked):
    """One pair: m = 1 - -2 = 3; beta 0.1, smoothing 0.1: L(0.3) + 0.1 * 0.3 = 0.5843552."""
    output = aot_unpaired(worked, beta=0.1, label_smoothing=0.1)
    assert output.losses.tolist() == pytest.approx([0.5843552444685272], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    assert aot_unpaired(worked, beta=0.1).losses.item() == dpo(worked, beta=0.1).losses.item()


def test_both_sides_are_sorted_each_for_itself(make_pair):
    """u = 1, -2, 3 and v = -1, 2, -4: sorted -2, 1, 3 less -4, -1, 2 = 2, 2, 1. Rewards in the order of rows."""
    pair = make_pair(
        [[-1.0], [-3.0], [-1.0]], [[-3.0], [-2.0], [-6.0]], [[-2.0], [-1.0], [-4.0]], [[-2.0], [-4.0], [-2.0]]
    )
    output = aot_unpaired(pair, beta=1.0)
    assert output.losses.tolist() == pytest.approx([math.log1p(math.exp(-m)) for m in (2, 2, 1)], abs=1e-14)
    assert output.chosen_rewards.tolist() == [1.0, -2.0, 3.0]
    assert output.rejected_rewards.tolist() == [-1.0, 2.0, -4.0]


def test_which_answers_form_a_pair_does_not_matter(random_pair):
    def turn(side: SequenceStats) -> SequenceStats:
        return SequenceStats(side.per_token_logps.roll(1, 0), side.completion_mask.roll(1, 0))

    turned = replace(random_pair, rejected=turn(random_pair.rejected), ref_rejected=turn(random_pair.ref_rejected))
    output, other = aot_unpaired(random_pair, beta=0.5), aot_unpaired(turned, beta=0.5)
    torch.testing.assert_close(output.losses, other.losses, rtol=0, atol=1e-14)
    assert not torch.allclose(dpo(random_pair).losses.mean(), dpo(turned).losses.mean(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("name", "value"), [("beta", 0), ("label_smoothing", 0.5), ("label_smoothing", -0.1)])
def test_wrong_hyperparameters_are_refused_by_name(worked, name, value):
    with pytest.raises(UserError, match=f"{name} is {value}"):
        aot_unpaired(worked, **{name: value})
