"""Builders of pairs from plain lists, so that each test shows its own numbers."""

import pytest
import torch

from diagnostics.stats import PairStats, SequenceStats

Rows = list[list[float]]


@pytest.fixture
def make_side():
    """SequenceStats of ragged rows of per-token values, right-padded; padding holds `garbage`."""

    def make(logps: Rows, *, garbage: float = 0.0, **vectors) -> SequenceStats:
        width = max(len(row) for row in logps)
        padded = [row + [garbage] * (width - len(row)) for row in logps]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in logps]
        values = torch.tensor(padded, dtype=torch.float64)
        return SequenceStats(values, torch.tensor(mask), **vectors)

    return make


@pytest.fixture
def hidden_pair(make_side):
    """One pair from the hidden vectors that predict each chosen and each rejected token."""

    def make(chosen: Rows, rejected: Rows) -> PairStats:
        def side(vectors: Rows) -> SequenceStats:
            table = torch.tensor(vectors, dtype=torch.float64)
            return make_side([[-1.0] * len(vectors)], hidden_sum=table.sum(0)[None], last_hidden=table[-1:])

        return PairStats(side(chosen), side(rejected))

    return make
