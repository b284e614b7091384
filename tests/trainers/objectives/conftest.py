"""Builders of pairs from plain lists, so that each test shows its own numbers."""

import pytest
import torch
from torch import Tensor

from diagnostics.stats import PairStats, SequenceStats

Rows = list[list[float]]


def build_side(logps: Rows) -> SequenceStats:
    """SequenceStats of ragged rows of per-token log-probs, right-padded with NaN; the values take a gradient."""
    width = max(len(row) for row in logps)
    padded = [row + [torch.nan] * (width - len(row)) for row in logps]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in logps]
    return SequenceStats(torch.tensor(padded, dtype=torch.float64).requires_grad_(), torch.tensor(mask))


@pytest.fixture
def make_pair():
    """PairStats of per-token log-probs: chosen, rejected, and the reference's of both."""

    def make(chosen: Rows, rejected: Rows, ref_chosen: Rows | None = None, ref_rejected: Rows | None = None):
        references = [build_side(side) if side else None for side in (ref_chosen, ref_rejected)]
        return PairStats(build_side(chosen), build_side(rejected), references[0], references[1])

    return make


@pytest.fixture
def worked() -> PairStats:
    """The pair of every worked example, in nats.

    chosen -1 - 2 = -3, its reference -1.5 - 2.5 = -4: log-ratio u = 1, 2 tokens, mean log-prob -1.5.
    rejected -2 - 1 - 3 = -6, its reference -1 - 1 - 2 = -4: log-ratio v = -2, 3 tokens, mean log-prob -2.
    """
    return PairStats(
        build_side([[-1.0, -2.0]]),
        build_side([[-2.0, -1.0, -3.0]]),
        build_side([[-1.5, -2.5]]),
        build_side([[-1.0, -1.0, -2.0]]),
    )


@pytest.fixture
def random_pair() -> PairStats:
    """Four pairs of ragged random log-probs, with a reference."""
    generator = torch.Generator().manual_seed(0)

    def side(*lengths: int) -> SequenceStats:
        return build_side([(-3 * torch.rand(n, generator=generator)).tolist() for n in lengths])

    return PairStats(side(2, 5, 1, 3), side(4, 1, 1, 6), side(2, 5, 1, 3), side(4, 1, 1, 6))


@pytest.fixture
def check_gradient():
    """Compare the gradient of an objective's losses with finite differences, in float64."""

    def check(objective, pair: PairStats, **hyperparameters) -> bool:
        def losses(chosen: Tensor, rejected: Tensor) -> Tensor:
            first = SequenceStats(chosen, pair.chosen.completion_mask)
            second = SequenceStats(rejected, pair.rejected.completion_mask)
            return objective(PairStats(first, second, pair.ref_chosen, pair.ref_rejected), **hyperparameters).losses

        values = [side.per_token_logps.detach().nan_to_num(0.0) for side in (pair.chosen, pair.rejected)]
        return torch.autograd.gradcheck(losses, [value.requires_grad_() for value in values])

    return check
