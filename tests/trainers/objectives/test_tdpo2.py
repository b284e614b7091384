"""TDPO2: a worked value, its stop-gradient, where it is TDPO1 or DPO."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.tdpo1 import tdpo1
from trainers.objectives.tdpo2 import tdpo2


@pytest.fixture
def pair(worked) -> PairStats:
    """The worked pair with K_chosen 0.2 + 0.3 = 0.5 and K_rejected 0.4 + 0.1 + 0.3 = 0.8, made from its log-probs.

    As in a model, the KL depends on the same weights as the log-probs, so that a gradient can flow through it.
    """

    def kl(logps: torch.Tensor, values: list[float]) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64) + logps - logps.detach()

    chosen = replace(worked.chosen, per_token_kl=kl(worked.chosen.per_token_logps, [0.2, 0.3]))
    rejected = replace(worked.rejected, per_token_kl=kl(worked.rejected.per_token_logps, [0.4, 0.1, 0.3]))
    return replace(worked, chosen=chosen, rejected=rejected)


def gradients(objective, pair: PairStats, **options) -> list[list[float]]:
    sides = [pair.chosen.per_token_logps, pair.rejected.per_token_logps]
    return [g[0].tolist() for g in torch.autograd.grad(objective(pair, **options).losses.sum(), sides)]


def test_worked_value_and_gradients(pair):
    """Margin 3 - 0.5 * (0.8 - 0.5) = 2.85; beta 0.1: loss log(1 + e^-0.285) = 0.5607661.

    Slope in the margin c = -0.1 / (1 + e^0.285) = -0.0429228. Chosen tokens get c from their log-probs and nothing
    from K_chosen; rejected tokens -c from their log-probs and -0.5 c from K_rejected.
    Rewards 0.1 * (1 + 0.5) and 0.1 * (-2 + 0.8), without alpha.
    """
    output = tdpo2(pair, beta=0.1, alpha=0.5)
    assert output.losses.tolist() == pytest.approx([0.5607661285081473], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.15], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.12], abs=1e-15)
    chosen, rejected = gradients(tdpo2, pair, beta=0.1, alpha=0.5)
    assert chosen == pytest.approx([-0.04292283881055083] * 2, abs=1e-15)
    assert rejected == pytest.approx([0.04292283881055083 + 0.021461419405275416] * 3, abs=1e-15)


def test_alpha_1_has_the_values_of_tdpo1_and_another_gradient(pair):
    """tdpo1 gives chosen tokens the slope twice, by the log-probs and by K_chosen; tdpo2 once."""
    for value, other in zip(tdpo2(pair, beta=0.3, alpha=1.0), tdpo1(pair, beta=0.3), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-14, atol=0)
    two, one = gradients(tdpo2, pair, alpha=1.0), gradients(tdpo1, pair)
    assert one[0] == pytest.approx([2 * g for g in two[0]], rel=1e-12)
    assert one[1] == pytest.approx(two[1], rel=1e-12)


def test_alpha_0_is_dpo_also_in_gradients(pair):
    assert tdpo2(pair, beta=0.3, alpha=0).losses.tolist() == dpo(pair, beta=0.3).losses.tolist()
    assert gradients(tdpo2, pair, beta=0.3, alpha=0) == gradients(dpo, pair, beta=0.3)


def test_wrong_hyperparameters_and_missing_parts_are_refused_by_name(pair, worked):
    with pytest.raises(UserError, match="beta is 0"):
        tdpo2(pair, beta=0)
    with pytest.raises(UserError, match="alpha is -1"):
        tdpo2(pair, alpha=-1)
    with pytest.raises(UserError, match="per_token_kl, which was not measured"):
        tdpo2(worked)
