"""AWM: a worked value with its gradient, the penalty, the missing column."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.awm import awm


def with_advantages(pair, chosen, rejected):
    sides = zip(("chosen", "rejected"), (pair.chosen, pair.rejected), (pair.ref_chosen, pair.ref_rejected), strict=True)
    apart = {
        name: replace(own, per_token_kl=(own.residual - ref.residual.detach()).square().mean(-1))
        for name, own, ref in sides
    }
    columns = {"chosen_advantage": [chosen], "rejected_advantage": [rejected]}
    return replace(pair, **apart, columns={k: torch.tensor(v, dtype=torch.float64) for k, v in columns.items()})


def test_worked_value_and_gradient(denoised):
    """A 1.5 and -0.5: exp(0) = 1, so -1.5 and 0.5. Deviations (0.1^2 + 0.1^2) / 2 = 0.01 and 0.1^2 / 2 = 0.005.

    beta 0.2: ((-1.5 + 0.002) + (0.5 + 0.001)) / 2. Gradient of an output: half of A * residual (two numbers), plus half
    of 0.2 * (output - reference's)."""
    pair = with_advantages(denoised, 1.5, -0.5)
    output = awm(pair, beta=0.2)
    assert output.losses.tolist() == pytest.approx([(-1.498 + 0.501) / 2], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.05], abs=1e-15)
    found = torch.autograd.grad(output.losses.sum(), [pair.chosen.residual, pair.rejected.residual])
    assert found[0].flatten().tolist() == pytest.approx([(1.5 * 0.3 + 0.02) / 2, (1.5 * 0.1 - 0.02) / 2], abs=1e-14)
    assert found[1].flatten().tolist() == pytest.approx([(-0.5 * 0.4 + 0.02) / 2, -0.5 * 0.2 / 2], abs=1e-14)


def test_its_gradient_is_that_of_the_weighted_errors(denoised):
    """Without the penalty: of (A_w e_w + A_l e_l) / 2, to first order the whole of it."""
    pair = with_advantages(denoised, 2.0, -3.0)
    plain = (2.0 * -pair.chosen.logps - 3.0 * -pair.rejected.logps) / 2
    sides = [pair.chosen.residual, pair.rejected.residual]
    found = torch.autograd.grad(awm(pair, beta=0.0).losses.sum(), sides, retain_graph=True)
    expected = torch.autograd.grad(plain.sum(), sides)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_without_an_advantage_nothing_but_the_penalty_is_left(denoised):
    assert awm(with_advantages(denoised, 0.0, 0.0), beta=0.2).losses.tolist() == pytest.approx([0.0015], abs=1e-15)


def test_missing_parts_are_refused_by_name(denoised):
    with pytest.raises(UserError, match="'chosen_advantage'"):
        awm(denoised)
    with pytest.raises(UserError, match="per_token_kl, which was not measured"):
        awm(replace(denoised, columns={"chosen_advantage": torch.ones(1), "rejected_advantage": torch.ones(1)}))
