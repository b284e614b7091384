"""PatchDPO: a worked value, maps of 0 and 1, the missing map."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.patchdpo import patchdpo


def mapped(pair, chosen, rejected):
    maps = [
        torch.tensor(r, dtype=torch.float64).expand(len(pair.chosen.completion_mask), -1) for r in (chosen, rejected)
    ]
    sides = zip(("chosen", "rejected"), (pair.chosen, pair.rejected), maps, strict=True)
    return replace(pair, **{name: replace(side, weights=r) for name, side, r in sides})


def test_worked_value_and_gradient(denoised):
    """Chosen (0.75 * 0.09 + 0.5 * 0.01) / 2 = 0.03625; rejected (0.1 * 0.16 + 1 * 0.04) / 2 = 0.028.

    Gradient of an output: weight * residual / 2 (the mean over two numbers and over two pictures)."""
    pair = mapped(denoised, [0.25, 0.5], [0.1, 1.0])
    output = patchdpo(pair)
    assert output.losses.tolist() == pytest.approx([(0.03625 + 0.028) / 2], abs=1e-15)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.03625], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.028], abs=1e-15)
    found = torch.autograd.grad(output.losses.sum(), [pair.chosen.residual, pair.rejected.residual])
    assert found[0].flatten().tolist() == pytest.approx([0.75 * 0.3 / 2, 0.5 * 0.1 / 2], abs=1e-15)
    assert found[1].flatten().tolist() == pytest.approx([0.1 * 0.4 / 2, 1 * 0.2 / 2], abs=1e-15)


def test_maps_of_0_leave_the_chosen_error_alone_and_of_1_the_rejected(many_denoised):
    chosen, rejected = (side.errors.mean(-1).tolist() for side in (many_denoised.chosen, many_denoised.rejected))
    nothing = patchdpo(mapped(many_denoised, [0.0] * 5, [0.0] * 5)).losses
    assert nothing.tolist() == pytest.approx([e / 2 for e in chosen], rel=1e-12)
    everything = patchdpo(mapped(many_denoised, [1.0] * 5, [1.0] * 5)).losses
    assert everything.tolist() == pytest.approx([e / 2 for e in rejected], rel=1e-12)


def test_without_a_map_it_is_refused(denoised):
    with pytest.raises(UserError, match="weights, which was not measured"):
        patchdpo(denoised)
