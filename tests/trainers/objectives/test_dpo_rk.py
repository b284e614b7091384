"""DPO with ties (Rao-Kupper): worked values, probabilities that add up to 1, DPO without ties."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.dpo_rk import dpo_rk


def with_ties(pair: PairStats, *ties: float) -> PairStats:
    return replace(pair, columns={"tie": torch.tensor(ties)})


def exchange(pair: PairStats) -> PairStats:
    return PairStats(pair.rejected, pair.chosen, pair.ref_rejected, pair.ref_chosen, pair.columns)


def test_worked_values(worked):
    """d = 0.3, nu = 3: P(win) = 1 / (1 + 3 e^-0.3) = 0.3103224, P(tie) = 8 P(win) P(loss) = 0.4916411.

    Their negative logs; P(loss) = 1 / (1 + 3 e^0.3) = 0.1980364.
    """
    output = dpo_rk(with_ties(worked, 0))
    assert output.losses.tolist() == pytest.approx([1.1701433865453146], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    assert dpo_rk(with_ties(worked, 1)).losses.tolist() == pytest.approx([0.7100062079473788], abs=1e-14)


@pytest.mark.parametrize("nu", [1.5, 3.0, 20.0])
def test_win_loss_and_tie_add_up_to_1(random_pair, nu):
    clear, tied = with_ties(random_pair, 0, 0, 0, 0), with_ties(random_pair, 1, 1, 1, 1)
    parts = [dpo_rk(pair, beta=0.3, nu=nu).losses for pair in (clear, exchange(clear), tied)]
    total = sum((-losses).exp() for losses in parts)
    torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-14)


def test_a_tie_does_not_know_which_answer_is_chosen_and_pulls_the_margin_to_0(random_pair, make_pair):
    tied = with_ties(random_pair, 1, 1, 1, 1)
    torch.testing.assert_close(dpo_rk(tied).losses, dpo_rk(exchange(tied)).losses, rtol=1e-12, atol=0)
    same = with_ties(make_pair([[-1.0]], [[-2.0]], [[-1.0]], [[-2.0]]), 1)
    (gradient,) = torch.autograd.grad(dpo_rk(same).losses.sum(), same.chosen.per_token_logps)
    assert gradient.item() == pytest.approx(0.0, abs=1e-16)


def test_only_tied_pairs_take_the_loss_of_ties(random_pair):
    mixed, clear, tied = (dpo_rk(with_ties(random_pair, *t)).losses for t in ([0, 1, 0, 1], [0] * 4, [1] * 4))
    assert mixed.tolist() == [clear[0], tied[1], clear[2], tied[3]]


def test_without_ties_it_is_dpo_at_nu_1(random_pair):
    pair = with_ties(random_pair, 0, 0, 0, 0)
    outputs = dpo_rk(pair, beta=0.3, nu=1), dpo(pair, beta=0.3)
    for value, other in zip(*outputs, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-15)
    sides = pair.chosen.per_token_logps, pair.rejected.per_token_logps
    gradients = [torch.autograd.grad(output.losses.sum(), sides) for output in outputs]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_wrong_hyperparameters_are_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        dpo_rk(with_ties(worked, 0), beta=0)
    with pytest.raises(UserError, match=r"nu is 0\.5;"):
        dpo_rk(with_ties(worked, 0), nu=0.5)
    with pytest.raises(UserError, match="nu is 1; where the data has ties"):
        dpo_rk(with_ties(worked, 1), nu=1)
