"""Common mode of log-ratios: worked values, symmetry, what it and the margin say together."""

import pytest
import torch

from diagnostics.measures.common_mode import common_mode
from diagnostics.measures.logratios import chosen_logratios, rejected_logratios
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
    """(1 - 2) / 2 = -0.5; (-3 - 5) / 2 = -4: the margin of the second pair is 2, and yet both sides fell."""
    assert common_mode(pair).tolist() == [-0.5, -4.0]


def test_exchanging_the_sides_changes_nothing(pair):
    turned = PairStats(pair.rejected, pair.chosen, pair.ref_rejected, pair.ref_chosen)
    assert common_mode(turned).tolist() == common_mode(pair).tolist()


def test_with_the_margin_it_gives_both_log_ratios_back(pair):
    assert (common_mode(pair) + logratio_margin(pair) / 2).tolist() == chosen_logratios(pair).tolist()
    assert (common_mode(pair) - logratio_margin(pair) / 2).tolist() == rejected_logratios(pair).tolist()


def test_zero_where_policy_is_the_reference(pair):
    assert common_mode(PairStats(pair.chosen, pair.rejected, pair.chosen, pair.rejected)).tolist() == [0.0, 0.0]


def test_nan_without_a_reference(pair):
    assert common_mode(PairStats(pair.chosen, pair.rejected)).isnan().tolist() == [True, True]


def test_gradient_check(pair):
    def common(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        first = SequenceStats(chosen, pair.chosen.completion_mask)
        second = SequenceStats(rejected, pair.rejected.completion_mask)
        return common_mode(PairStats(first, second, pair.ref_chosen, pair.ref_rejected))

    logps = [s.per_token_logps.clone().requires_grad_() for s in (pair.chosen, pair.rejected)]
    assert torch.autograd.gradcheck(common, logps)
