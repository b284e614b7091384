"""DenseDPO: a worked value, one segment, labels that differ, clips of other lengths."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.densedpo import densedpo
from trainers.objectives.diffusion_dpo import diffusion_dpo


def segmented(pair, segments, labels):
    """The pair with segments of its numbers and labels of the segments."""
    parts = {"segments": torch.tensor(segments).expand(len(pair.chosen.completion_mask), -1)}
    sides = {"chosen": replace(pair.chosen, **parts), "rejected": replace(pair.rejected, **parts)}
    return replace(pair, **sides, columns={"segment_labels": torch.tensor(labels, dtype=torch.float64)})


def test_worked_value(denoised):
    """Each number a segment: D0 = 0.09 - 0.04 = 0.05 and 0.01 - 0.04 = -0.03; D1 = 0.16 - 0.09 = 0.07 and 0.

    Labels +1 and -1 at beta 50: -50 * ((0.05 - 0.07) - (-0.03 - 0)) = -50 * 0.01 = -0.5."""
    output = densedpo(segmented(denoised, [0, 1], [[1.0, -1.0]]), beta=50.0)
    assert output.losses.tolist() == pytest.approx([math.log1p(math.exp(0.5))], abs=1e-13)
    assert output.chosen_rewards.tolist() == pytest.approx([-50 * 0.08], abs=1e-13)
    assert output.rejected_rewards.tolist() == pytest.approx([-50 * 0.07], abs=1e-13)


def test_one_segment_is_diffusion_dpo_with_twice_the_beta(many_denoised):
    """A label of -1 exchanges the sides; as a plain number or a list of one."""
    one = segmented(many_denoised, [0] * 5, [[1.0]] * 4)
    plain = diffusion_dpo(many_denoised, beta=400.0)
    for value, expected in zip(densedpo(one, beta=200.0), plain, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    turned = densedpo(segmented(many_denoised, [0] * 5, [-1.0] * 4), beta=200.0)
    margin = plain.chosen_rewards - plain.rejected_rewards
    torch.testing.assert_close(turned.losses, -torch.nn.functional.logsigmoid(-margin), rtol=1e-10, atol=1e-12)


def test_the_sum_over_segments_of_means_of_unequal_segments(many_denoised):
    """Two numbers and three: each segment's own mean, added."""
    pair = segmented(many_denoised, [0, 1, 1, 0, 1], [[1.0, 1.0]] * 4)
    rewards = densedpo(pair, beta=1.0).chosen_rewards
    own, ref = (side.residual.detach().square().mean(1) for side in (pair.chosen, pair.ref_chosen))
    d = own - ref
    torch.testing.assert_close(rewards, -(d[:, [0, 3]].mean(-1) + d[:, [1, 2, 4]].mean(-1)), rtol=1e-12, atol=1e-14)


def test_log_2_at_the_reference_and_no_push_without_a_preference(at_reference, many_denoised):
    assert densedpo(segmented(at_reference, [0, 0, 1, 1, 1], [[1.0, -1.0]] * 4)).losses.tolist() == [math.log(2)] * 4
    tied = segmented(many_denoised, [0, 0, 1, 1, 1], [[0.0, 0.0]] * 4)
    output = densedpo(tied)
    assert output.losses.tolist() == [math.log(2)] * 4
    assert not torch.autograd.grad(output.losses.sum(), tied.chosen.residual)[0].any()


def test_a_clip_without_a_segment_counts_nothing_there(many_denoised):
    """Labels of three segments where the clips have two: the third is 0 whatever it says."""
    two, three = ([[1.0, -1.0, *more]] * 4 for more in ((), (1.0,)))
    expected = densedpo(segmented(many_denoised, [0, 0, 1, 1, 1], two)).losses
    assert densedpo(segmented(many_denoised, [0, 0, 1, 1, 1], three)).losses.tolist() == expected.tolist()


def test_missing_parts_are_refused_by_name(denoised):
    with pytest.raises(UserError, match="'segment_labels'"):
        densedpo(denoised)
    with pytest.raises(UserError, match="segments, which was not measured"):
        densedpo(replace(denoised, columns={"segment_labels": torch.ones(1, 1)}))
