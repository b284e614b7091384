"""DPO-Shift: a worked value, its gradients, DPO at a shift of 1."""

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.dpo import dpo
from trainers.objectives.dpo_shift import dpo_shift


def test_worked_value_and_gradient(worked):
    """u - 0.5 v = 1 + 1 = 2; log(1 + e^-0.2) = 0.5981389. Rejected tokens get half of what chosen tokens get."""
    output = dpo_shift(worked, shift=0.5)
    assert output.losses.tolist() == pytest.approx([0.5981388693815918], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    assert chosen.tolist() == [pytest.approx([-0.045016600268752215] * 2, abs=1e-15)]
    assert rejected.tolist() == [pytest.approx([0.022508300134376108] * 3, abs=1e-15)]


def test_is_dpo_at_a_shift_of_1(random_pair):
    for value, other in zip(dpo_shift(random_pair, beta=0.3, shift=1), dpo(random_pair, beta=0.3), strict=True):
        assert value.tolist() == other.tolist()


def test_the_default_shift_is_095(random_pair):
    assert dpo_shift(random_pair).losses.tolist() == dpo_shift(random_pair, shift=0.95).losses.tolist()
    assert dpo_shift(random_pair).losses.tolist() != dpo(random_pair).losses.tolist()


def test_wrong_hyperparameters_are_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        dpo_shift(worked, beta=0)
    for wrong in (0, 1.05):
        with pytest.raises(UserError, match=f"shift is {wrong}"):
            dpo_shift(worked, shift=wrong)
