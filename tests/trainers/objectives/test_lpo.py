"""LPO: the loss of SPO with its own beta, which saturates."""

import math

import pytest

from trainers.objectives.lpo import lpo
from trainers.objectives.spo import spo


def test_is_spo_with_beta_500(steps):
    for value, other in zip(lpo(steps), spo(steps, beta=500.0), strict=True):
        assert value.tolist() == other.tolist()


def test_the_margin_of_a_step_is_bounded_by_the_clip(make_pair):
    """500 * (log 1.1 - log 0.9) = 100.3: the loss of the worst step is that, of the best 0."""
    worst = lpo(make_pair([[-9.0]], [[9.0]], [[0.0]], [[0.0]]))
    assert worst.losses.item() == pytest.approx(500 * math.log(1.1 / 0.9), rel=1e-12)
