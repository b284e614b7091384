"""Inversion-DPO: a worked value, its sign, its start, the missing parts."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.inversion_dpo import inversion_dpo


def inverted(pair, alphas):
    """The pair with its deviations and alpha-bars."""
    sides = zip(("chosen", "rejected"), (pair.chosen, pair.rejected), (pair.ref_chosen, pair.ref_rejected), strict=True)
    values = torch.tensor(alphas, dtype=torch.float64)
    return replace(pair, **{
        name: replace(
            own, alphas=values.expand(len(own.completion_mask), -1),
            per_token_kl=(own.residual - ref.residual.detach()).square().mean(-1) / own.residual.shape[1],
        )
        for name, own, ref in sides
    })  # fmt: skip


def test_worked_value_and_its_sign(denoised):
    """Deviations 0.01 and 0.005 at alpha-bar 0.25: d = 0.02 and 0.01. beta 100: 50 * 0.01 = 0.5, and d_w is raised."""
    pair = inverted(denoised, [0.25])
    output = inversion_dpo(pair, beta=100.0)
    assert output.losses.tolist() == pytest.approx([math.log1p(math.exp(-0.5))], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([1.0], abs=1e-14)
    assert output.rejected_rewards.tolist() == pytest.approx([0.5], abs=1e-14)
    found = torch.autograd.grad(output.losses.sum(), [pair.chosen.per_token_kl, pair.rejected.per_token_kl])
    push = 50 / 0.5 / (1 + math.exp(0.5))
    assert [slope.item() for slope in found] == pytest.approx([-push, push], abs=1e-12)


def test_the_mean_over_steps_is_of_the_weighted_deviations(many_denoised):
    pair = inverted(many_denoised, [0.9, 0.5, 0.1])
    apart = (pair.chosen.residual - pair.ref_chosen.residual).detach().square().mean(-1)
    expected = 1000 * (apart / torch.tensor([1.8, 1.0, 0.2])).mean(-1)
    torch.testing.assert_close(inversion_dpo(pair).chosen_rewards, expected, rtol=1e-7, atol=0)


def test_log_2_without_gradient_at_the_reference(at_reference):
    pair = inverted(at_reference, [0.9, 0.5, 0.1])
    output = inversion_dpo(pair)
    assert output.losses.tolist() == [math.log(2)] * 4
    assert not torch.autograd.grad(output.losses.sum(), pair.chosen.residual)[0].any()


def test_missing_parts_are_refused_by_name(denoised):
    with pytest.raises(UserError, match="per_token_kl, which was not measured"):
        inversion_dpo(denoised)
