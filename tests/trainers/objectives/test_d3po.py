"""D3PO: a worked value, the clamp, its start, masks, far away."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.d3po import d3po


def test_worked_value_the_clamp_and_the_gradient(steps, slopes):
    """beta 2: step 1 has log r 0.05 and -0.02, margin 0.14; in step 2 0.3 is clamped to log 1.1, -0.01 is not.

    The loss is the mean of both; the clamped step has no gradient on the chosen side."""
    output = d3po(steps, beta=2.0)
    margins = [2 * (0.05 + 0.02), 2 * (math.log(1.1) + 0.01)]
    assert output.losses.tolist() == pytest.approx([sum(math.log1p(math.exp(-m)) for m in margins) / 2], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([(0.05 + math.log(1.1))], abs=1e-14)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.03], abs=1e-14)
    chosen, rejected = slopes(output.losses, steps)
    pushes = [1 / (1 + math.exp(m)) for m in margins]
    assert chosen.flatten().tolist() == pytest.approx([-pushes[0], 0.0], abs=1e-14)
    assert rejected.flatten().tolist() == pytest.approx(pushes, abs=1e-14)


def test_log_2_at_the_reference(random_pair, steps):
    same = replace(steps, ref_chosen=steps.chosen, ref_rejected=steps.rejected)
    assert d3po(same).losses.tolist() == [math.log(2)]


def test_ratios_are_clamped_between_1_minus_and_1_plus_the_clip(make_pair):
    """Log-ratios of +-1000: exp would overflow; log 1.2 and log 0.8 at clip 0.2."""
    output = d3po(make_pair([[1000.0]], [[-1000.0]], [[0.0]], [[0.0]]), beta=3.0, clip=0.2)
    assert output.chosen_rewards.item() == pytest.approx(3 * math.log(1.2), abs=1e-14)
    assert output.rejected_rewards.item() == pytest.approx(3 * math.log(0.8), abs=1e-14)
    assert output.losses.item() == pytest.approx(math.log1p((0.8 / 1.2) ** 3), abs=1e-14)


def test_steps_that_only_one_side_has_do_not_count(make_pair):
    short = make_pair([[1.05]], [[0.98, 5.0]], [[1.0]], [[1.0, 2.0]])
    mask = torch.tensor([[1, 0]])
    padded = {name: replace(side, completion_mask=mask, per_token_logps=torch.cat(
        (side.per_token_logps, torch.full((1, 1), torch.nan)), 1)) for name, side in (("chosen", short.chosen),
        ("ref_chosen", short.ref_chosen))}  # fmt: skip
    one = make_pair([[1.05]], [[0.98]], [[1.0]], [[1.0]])
    output = d3po(replace(short, **padded))
    assert output.losses.tolist() == pytest.approx(d3po(one).losses.tolist(), abs=1e-15)
    assert torch.autograd.grad(output.losses.sum(), short.chosen.per_token_logps)[0].isfinite().all()


def test_wrong_settings_are_refused_by_name(steps):
    with pytest.raises(UserError, match="clip is 1"):
        d3po(steps, clip=1)
    with pytest.raises(UserError, match="beta is 0"):
        d3po(steps, beta=0)
