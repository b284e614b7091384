"""Margin of log-ratios: worked values, sign, reductions."""

import pytest
import torch

from diagnostics.measures.logratios import chosen_logratios
from diagnostics.measures.margin import logratio_margin
from diagnostics.stats import PairStats, SequenceStats


@pytest.fixture
def pair(make_side) -> PairStats:
    """Log-ratios 1 and -3 (chosen), -2 and -5 (rejected)."""
    return PairStats(
        make_side([[-1.0, -2.0], [-4.0]]),
        make_side([[-2.0, -1.0, -3.0], [-9.0]]),
        make_side([[-1.5, -2.5], [-1.0]]),
        make_side([[-1.0, -1.0, -2.0], [-4.0]]),
    )


def test_worked_values(pair):
    """1 - -2 = 3; and -3 - -5 = 2: the margin is positive although the chosen answer lost 3 nats."""
    assert logratio_margin(pair).tolist() == [3.0, 2.0]


def test_exchanging_the_sides_turns_the_sign(pair):
    turned = PairStats(pair.rejected, pair.chosen, pair.ref_rejected, pair.ref_chosen)
    assert logratio_margin(turned).tolist() == [-3.0, -2.0]


def test_zero_where_policy_is_the_reference_and_the_chosen_logratio_where_rejected_is(pair):
    same = PairStats(pair.chosen, pair.rejected, pair.chosen, pair.rejected)
    assert logratio_margin(same).tolist() == [0.0, 0.0]
    half = PairStats(pair.chosen, pair.rejected, pair.ref_chosen, pair.rejected)
    assert logratio_margin(half).tolist() == chosen_logratios(half).tolist() == [1.0, -3.0]


def test_nan_without_a_reference(pair):
    assert logratio_margin(PairStats(pair.chosen, pair.rejected)).isnan().tolist() == [True, True]


def test_gradient_check(pair):
    def margin(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        first = SequenceStats(chosen, pair.chosen.completion_mask)
        second = SequenceStats(rejected, pair.rejected.completion_mask)
        return logratio_margin(PairStats(first, second, pair.ref_chosen, pair.ref_rejected))

    logps = [s.per_token_logps.clone().requires_grad_() for s in (pair.chosen, pair.rejected)]
    assert torch.autograd.gradcheck(margin, logps)
