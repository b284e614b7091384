"""GradSPO: a worked value, its gradient, its start, the missing parts."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.gradspo import gradspo


@pytest.fixture
def children(denoised):
    """One parent: noise predicted 0.3 and 0.1 for both children, by the reference 0.2 and 0.2, by the moving average
    0.25 and 0.15, alpha-bar 0.36, their own noises (1, -1) and (-0.5, 0)."""

    def one(values):
        return torch.tensor([values], dtype=torch.float64)

    parts = {"predicted_noise": denoised.chosen.residual, "alphas": one([0.36]), "ema_noise": one([[0.25, 0.15]])}
    noises = [one([values]) for values in ([1.0, -1.0], [-0.5, 0.0])]
    own = [replace(denoised.chosen, **parts, noise=noise) for noise in noises]
    reference = replace(denoised.ref_chosen, predicted_noise=one([[0.2, 0.2]]))
    return replace(denoised, chosen=own[0], rejected=own[1], ref_chosen=reference, ref_rejected=reference)


def near(output, noise):
    """l by hand: minus the mean distance from (f_ema - 0.5 * 0.8 * n)."""
    goal = [m - 0.4 * n for m, n in zip((0.25, 0.15), noise, strict=True)]
    return -sum((f - g) ** 2 for f, g in zip(output, goal, strict=True)) / 2


def test_worked_value_and_gradient(children):
    """l - l_ref of both children, within the clamp; beta 10."""
    moved = [near((0.3, 0.1), n) - near((0.2, 0.2), n) for n in ((1.0, -1.0), (-0.5, 0.0))]
    assert max(map(abs, moved)) < 0.09
    output = gradspo(children)
    assert output.losses.tolist() == pytest.approx([math.log1p(math.exp(-10 * (moved[0] - moved[1])))], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([10 * moved[0]], abs=1e-14)
    assert output.rejected_rewards.tolist() == pytest.approx([10 * moved[1]], abs=1e-14)
    (found,) = torch.autograd.grad(output.losses.sum(), children.chosen.residual)  # both sides are this output
    push = 10 / (1 + math.exp(10 * (moved[0] - moved[1])))
    # d (l_w - l_l) / df = goal_w - goal_l = -0.4 (n_w - n_l): the output moves against the better child's noise
    assert found.flatten().tolist() == pytest.approx([push * 0.4 * 1.5, push * 0.4 * -1.0], abs=1e-12)


def test_log_2_at_the_reference(children):
    same = replace(children.chosen, ema_noise=None)
    output = gradspo(replace(children, ref_chosen=same, ref_rejected=same))
    assert output.losses.tolist() == [math.log(2)]


def test_the_ratio_is_clamped(children):
    far = replace(children.ref_chosen, predicted_noise=torch.full((1, 1, 2), 5.0, dtype=torch.float64))
    output = gradspo(replace(children, ref_chosen=far, ref_rejected=far))
    assert output.chosen_rewards.tolist() == output.rejected_rewards.tolist() == pytest.approx([10 * math.log(1.1)])


def test_missing_parts_are_refused_by_name(children):
    with pytest.raises(UserError, match="ema_noise, which was not measured"):
        gradspo(replace(children, chosen=replace(children.chosen, ema_noise=None)))
