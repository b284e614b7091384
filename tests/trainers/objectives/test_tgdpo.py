"""TGDPO: a worked value and gradients, where it is DPO, no gradient into token rewards."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats, SequenceStats
from trainers.objectives.dpo import dpo
from trainers.objectives.tgdpo import tgdpo


@pytest.fixture
def pair(worked) -> PairStats:
    """Reward policy above the reference by 1 and 0 on the chosen tokens, by -2, 0 and 1 on the rejected ones."""
    logps = {"chosen": [[-0.5, -2.5]], "rejected": [[-3.0, -1.0, -1.0]]}
    extra = {
        f"reward_{name}": SequenceStats(
            torch.tensor(rows, dtype=torch.float64).requires_grad_(), torch.ones(1, len(rows[0]))
        )
        for name, rows in logps.items()
    }
    return replace(worked, extra=extra)


def test_worked_value(pair):
    """beta 0.1, alpha 0.5: chosen weights 1 + 0.05 * (1, 0), rejected weights 1 - 0.05 * (-2, 0, 1).

    1.05 * 0.5 + 1 * 0.5 = 1.025; 1.1 * -1 + 1 * 0 + 0.95 * -1 = -2.05; loss log(1 + e^(-0.1 * 3.075)) = 0.5511704.
    Rewards are without weights, 0.1 * 1 and 0.1 * -2.
    """
    output = tgdpo(pair, beta=0.1, alpha=0.5)
    assert output.losses.tolist() == pytest.approx([0.5511704361604955], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_tokens_get_the_gradient_in_proportion_to_their_weights(pair):
    sides = pair.chosen.per_token_logps, pair.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(tgdpo(pair, beta=0.1, alpha=0.5).losses.sum(), sides)
    slope = chosen[0, 1].item()
    assert slope == pytest.approx(-0.1 / (1 + torch.exp(torch.tensor(0.3075, dtype=torch.float64)).item()), abs=1e-15)
    assert chosen[0].tolist() == pytest.approx([1.05 * slope, slope], rel=1e-13)
    assert rejected[0].tolist() == pytest.approx([-1.1 * slope, -slope, -0.95 * slope], rel=1e-13)


def test_the_reward_policy_gets_no_gradient(pair):
    rewards = [side.per_token_logps for side in pair.extra.values()]
    assert torch.autograd.grad(tgdpo(pair).losses.sum(), rewards, allow_unused=True) == (None, None)


def test_rewards_are_those_of_dpo_whatever_the_weights(pair):
    output, plain = tgdpo(pair, beta=0.3, alpha=2.0), dpo(pair, beta=0.3)
    assert output.losses.tolist() != plain.losses.tolist()
    assert output.chosen_rewards.tolist() == plain.chosen_rewards.tolist()
    assert output.rejected_rewards.tolist() == plain.rejected_rewards.tolist()
    assert not output.chosen_rewards.requires_grad


def test_alpha_0_or_a_reward_policy_that_is_the_reference_is_dpo(pair):
    same = {"reward_chosen": pair.ref_chosen, "reward_rejected": pair.ref_rejected}
    expected = dpo(pair, beta=0.3)
    for output in (tgdpo(pair, beta=0.3, alpha=0), tgdpo(replace(pair, extra=same), beta=0.3)):
        for value, other in zip(output, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-14, atol=0)


def test_wrong_hyperparameters_and_missing_parts_are_refused_by_name(pair, worked):
    with pytest.raises(UserError, match="beta is 0"):
        tgdpo(pair, beta=0)
    with pytest.raises(UserError, match="alpha is -1"):
        tgdpo(pair, alpha=-1)
    with pytest.raises(UserError, match="set reward_model"):
        tgdpo(worked)
    with pytest.raises(UserError, match="'reference'"):
        tgdpo(replace(pair, ref_chosen=None, ref_rejected=None))
