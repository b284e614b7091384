"""TDPO1: a worked value and gradients with the KL, where it is DPO, padding."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.tdpo1 import tdpo1


def with_kl(pair: PairStats, chosen: list[list[float]], rejected: list[list[float]]) -> PairStats:
    """The pair with exact KL per token, which takes a gradient."""
    kls = [torch.tensor(rows, dtype=torch.float64).requires_grad_() for rows in (chosen, rejected)]
    sides = (replace(side, per_token_kl=kl) for side, kl in zip((pair.chosen, pair.rejected), kls, strict=True))
    return replace(pair, **dict(zip(("chosen", "rejected"), sides, strict=True)))


def test_worked_value_and_gradients(worked):
    """K_chosen 0.2 + 0.3 = 0.5, K_rejected 0.4 + 0.1 + 0.3 = 0.8; margin 3 - (0.8 - 0.5) = 2.7; beta 0.1.

    Loss log(1 + e^-0.27) = 0.5672321; slope in the margin -0.1 / (1 + e^0.27) = -0.0432907, which the chosen answer's
    log-probs and KL get alike, and the rejected one's with the other sign.
    Rewards 0.1 * (1 + 0.5) and 0.1 * (-2 + 0.8).
    """
    pair = with_kl(worked, [[0.2, 0.3]], [[0.4, 0.1, 0.3]])
    output = tdpo1(pair, beta=0.1)
    assert output.losses.tolist() == pytest.approx([0.5672321351223193], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.15], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.12], abs=1e-15)
    leaves = [t for s in (pair.chosen, pair.rejected) for t in (s.per_token_logps, s.per_token_kl)]
    slopes = [-0.04329070950345457] * 2 + [0.04329070950345457] * 2
    for gradient, slope in zip(torch.autograd.grad(output.losses.sum(), leaves), slopes, strict=True):
        assert gradient[0].tolist() == pytest.approx([slope] * gradient.shape[1], abs=1e-15)


def test_equal_kl_on_both_sides_is_dpo_up_to_the_rewards(worked):
    pair = with_kl(worked, [[0.2, 0.4]], [[0.1, 0.2, 0.3]])
    output, plain = tdpo1(pair, beta=0.3), dpo(worked, beta=0.3)
    torch.testing.assert_close(output.losses, plain.losses, rtol=1e-14, atol=0)
    torch.testing.assert_close(output.chosen_rewards, plain.chosen_rewards + 0.3 * 0.6, rtol=1e-14, atol=0)


def test_a_kl_under_padding_does_not_count(make_pair):
    rows = [[-1.0], [-1.0, -2.0]]
    pair = make_pair(rows, rows, rows, rows)
    full = [[0.2, torch.nan], [0.1, 0.4]], [[0.3, torch.inf], [0.0, 0.6]]
    clean = [[0.2, 0.0], [0.1, 0.4]], [[0.3, 0.0], [0.0, 0.6]]
    assert tdpo1(with_kl(pair, *full)).losses.tolist() == tdpo1(with_kl(pair, *clean)).losses.tolist()


def test_wrong_hyperparameters_and_missing_parts_are_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        tdpo1(with_kl(worked, [[0.2, 0.3]], [[0.4, 0.1, 0.3]]), beta=0)
    with pytest.raises(UserError, match="per_token_kl, which was not measured"):
        tdpo1(worked)
