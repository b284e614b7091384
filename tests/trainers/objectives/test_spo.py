"""SPO: the loss of D3PO with its own beta."""

import math

import pytest

from trainers.objectives.d3po import d3po
from trainers.objectives.spo import spo


def test_worked_value_at_its_defaults(steps):
    """beta 10: margins 0.7 and 10 (log 1.1 + 0.01)."""
    margins = [0.7, 10 * (math.log(1.1) + 0.01)]
    expected = sum(math.log1p(math.exp(-m)) for m in margins) / 2
    assert spo(steps).losses.tolist() == pytest.approx([expected], abs=1e-14)


def test_is_d3po(steps):
    for value, other in zip(spo(steps, beta=0.1), d3po(steps), strict=True):
        assert value.tolist() == other.tolist()
