"""Log-ratios: worked values, zero at the reference, missing reference, what padding holds."""

import math

import pytest
import torch

from diagnostics.measures.logratios import chosen_logratios, rejected_logratios
from diagnostics.stats import PairStats, SequenceStats


@pytest.fixture
def pair(make_side) -> PairStats:
    """Chosen -1-2 = -3 and -0.5; rejected -2-1-3 = -6 and -4; reference -1.5-2.5 = -4, -0.25; -1-1-2 = -4, -9."""
    return PairStats(
        make_side([[-1.0, -2.0], [-0.5]], garbage=math.nan),
        make_side([[-2.0, -1.0, -3.0], [-4.0]], garbage=math.inf),
        make_side([[-1.5, -2.5], [-0.25]], garbage=-math.inf),
        make_side([[-1.0, -1.0, -2.0], [-9.0]], garbage=math.nan),
    )


def test_worked_values(pair):
    """Chosen: -3 - -4 = 1 and -0.5 - -0.25 = -0.25. Rejected: -6 - -4 = -2 and -4 - -9 = 5."""
    assert chosen_logratios(pair).tolist() == [1.0, -0.25]
    assert rejected_logratios(pair).tolist() == [-2.0, 5.0]


def test_zero_where_policy_is_the_reference(pair):
    same = PairStats(pair.chosen, pair.rejected, pair.chosen, pair.rejected)
    assert chosen_logratios(same).tolist() == [0.0, 0.0]
    assert rejected_logratios(same).tolist() == [0.0, 0.0]


def test_nan_without_a_reference(pair):
    bare = PairStats(pair.chosen, pair.rejected)
    for measure in (chosen_logratios, rejected_logratios):
        assert measure(bare).isnan().tolist() == [True, True]


def test_float32_logps_are_added_in_float64(make_side):
    """-2^24 and -1: in float32 the sum would stay at -16,777,216."""
    policy = SequenceStats(torch.tensor([[-16_777_216.0, -1.0]]), torch.ones(1, 2))
    pair = PairStats(policy, policy, make_side([[0.0]]), make_side([[0.0]]))
    assert chosen_logratios(pair).item() == -16_777_217.0
    assert rejected_logratios(pair).item() == -16_777_217.0


def test_gradient_is_one_on_completion_tokens_and_zero_on_padding(make_side):
    """Also where padding holds NaN, which multiplying by the mask would spread."""
    side = make_side([[-1.0, -2.0], [-0.5]], garbage=math.nan)
    logps = side.per_token_logps.requires_grad_()
    pair = PairStats(side, side, make_side([[-1.0, -2.0], [-0.5]]), make_side([[-1.0, -2.0], [-0.5]]))
    for measure in (chosen_logratios, rejected_logratios):
        (gradient,) = torch.autograd.grad(measure(pair).sum(), logps)
        assert gradient.tolist() == [[1.0, 1.0], [1.0, 0.0]]
