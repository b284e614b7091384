"""InfiFPO: worked values with the clip open and shut, the choice of the source, its gradient, shapes of columns."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.infifpo import infifpo


def fused(pair: PairStats, chosen: list, rejected: list) -> PairStats:
    columns = {"chosen_source_logps": chosen, "rejected_source_logps": rejected}
    return replace(pair, columns={name: torch.tensor(v, dtype=torch.float64) for name, v in columns.items()})


def test_worked_value_of_sources_within_the_clip(worked):
    """Means -1.5 and -2, initial -2 and -4/3. Sources -1.2 (above -2) and -2.5 (below -4/3) pass.

    2.5 * ((-1.5 + 1.2) - (-2 + 2.5)) = 2.5 * (-0.3 - 0.5) = -2; log(1 + e^2) = 2.1269280. Rewards -0.75 and 1.25.
    """
    output = infifpo(fused(worked, [-1.2], [-2.5]))
    assert output.losses.tolist() == pytest.approx([2.1269280110429727], abs=1e-13)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.75], abs=1e-14)
    assert output.rejected_rewards.tolist() == pytest.approx([1.25], abs=1e-14)


def test_worse_sources_are_clipped_at_the_initial_policy(worked):
    """Sources -3 and -0.5 are clipped to -2 and -4/3: rewards 2.5 * 0.5 and 2.5 * (-2 + 4/3)."""
    output = infifpo(fused(worked, [-3.0], [-0.5]))
    assert output.chosen_rewards.tolist() == pytest.approx([1.25], abs=1e-14)
    assert output.rejected_rewards.tolist() == pytest.approx([-5 / 3], abs=1e-14)


def test_the_source_is_chosen_by_probability_and_not_by_its_logarithm(worked):
    """Chosen e^-1.5 = 0.2231: e^-9 is 0.2230 away (7.5 nats), e^-0.7 = 0.4966 is 0.2735 away (0.8 nats).

    Rejected e^-2 = 0.1353: e^-30 is 0.1353 away, e^-1.4 = 0.2466 is 0.1113 away, so e^-30 is taken.
    """
    output = infifpo(fused(worked, [[-9.0, -0.7]], [[-30.0, -1.4]]))
    assert output.chosen_rewards.tolist() == pytest.approx([2.5 * (-1.5 + 0.7)], abs=1e-13)
    assert output.rejected_rewards.tolist() == pytest.approx([2.5 * (-2 + 30)], abs=1e-13)


def test_each_pair_chooses_for_itself_and_only_means_pass_a_gradient(random_pair):
    """With one source a side the gradient is -beta sigmoid(-margin) / n a chosen token, whichever source it is."""
    table = [[-0.1, -5.0], [-5.0, -0.1], [-0.5, -0.4], [-2.0, -1.0]]
    pair = fused(random_pair, table, table)
    output = infifpo(pair)
    margins = output.chosen_rewards - output.rejected_rewards
    (gradient,) = torch.autograd.grad(output.losses.sum(), pair.chosen.per_token_logps)
    mask = pair.chosen.completion_mask
    expected = torch.where(mask.bool(), (-2.5 * torch.sigmoid(-margins) / pair.chosen.lengths)[:, None], 0.0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_sources_equal_to_the_initial_policy_give_the_mean_form_of_dpo(random_pair):
    """f = the reference's mean on both sides, in the shapes (B,) and (B, 1)."""
    means = [side.avg_logps.detach().tolist() for side in (random_pair.ref_chosen, random_pair.ref_rejected)]
    pair = random_pair
    clip = torch.tensor(means, dtype=torch.float64)
    margins = 2.5 * (pair.chosen.avg_logps - pair.rejected.avg_logps - clip[0] + clip[1])
    flat, rows = infifpo(fused(pair, *means)), infifpo(fused(pair, *([[m] for m in side] for side in means)))
    torch.testing.assert_close(flat.losses, torch.log1p(torch.exp(-margins)), rtol=1e-12, atol=0)
    for value, other in zip(flat, rows, strict=True):
        assert value.tolist() == other.tolist()


def test_a_beta_of_zero_is_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        infifpo(fused(worked, [-1.2], [-2.5]), beta=0)
