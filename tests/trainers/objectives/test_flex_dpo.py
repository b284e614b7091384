"""Flex-DPO: a worked value, DPO with equal betas, DPO-Shift otherwise."""

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.dpo import dpo
from trainers.objectives.dpo_shift import dpo_shift
from trainers.objectives.flex_dpo import flex_dpo


def test_worked_value(worked):
    """0.3 * 1 - 0.1 * -2 = 0.5; log(1 + e^-0.5) = 0.4740770. The margin of rewards is that 0.5."""
    output = flex_dpo(worked, beta_plus=0.3, beta_minus=0.1)
    assert output.losses.tolist() == pytest.approx([0.4740769841801067], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.3], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_is_dpo_with_equal_betas(random_pair):
    for value, other in zip(
        flex_dpo(random_pair, beta_plus=0.3, beta_minus=0.3), dpo(random_pair, beta=0.3), strict=True
    ):
        assert value.tolist() == other.tolist()


def test_its_gradients_are_those_of_dpo_shift_at_the_ratio_of_betas(random_pair):
    sides = random_pair.chosen.per_token_logps, random_pair.rejected.per_token_logps
    flex = torch.autograd.grad(flex_dpo(random_pair, beta_plus=0.4, beta_minus=0.3).losses.sum(), sides)
    shifted = torch.autograd.grad(dpo_shift(random_pair, beta=0.4, shift=0.75).losses.sum(), sides)
    for one, other in zip(flex, shifted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_wrong_hyperparameters_are_refused_by_name(worked):
    with pytest.raises(UserError, match="beta_plus is 0"):
        flex_dpo(worked, beta_plus=0)
    with pytest.raises(UserError, match="beta_minus is 0;"):
        flex_dpo(worked, beta_minus=0)
    with pytest.raises(UserError, match=r"beta_minus is 0\.2; it must be at most beta_plus, 0\.1"):
        flex_dpo(worked, beta_minus=0.2)
