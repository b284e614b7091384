"""rDPO: a worked value and its gradients on all three rows, DPO, its start, missing rows."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.rdpo import ROWS, rdpo


@pytest.fixture
def three(worked, add_rows) -> PairStats:
    """The worked pair, h(m, y_w) = 1 and h(m, y_l) = -2, with h(m_r, y_w) = -3 + 2.5 = -0.5."""
    return add_rows(worked, retrieved_chosen=([[-1.0, -2.0]], [[-1.5, -1.0]]))


def test_worked_value_and_gradients(three):
    """log(1 + e^-0.3) + log(1 + e^-0.15) = 0.5543552 + 0.6209570; slopes -0.1 / (1 + e^0.3) and -0.1 / (1 + e^0.15)."""
    output = rdpo(three)
    assert output.losses.tolist() == pytest.approx([1.1753122922580592], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    rows = [three.chosen, three.rejected, three.extra["retrieved_chosen"]]
    found = torch.autograd.grad(output.losses.sum(), [row.per_token_logps for row in rows])
    answers, pictures = 0.1 / (1 + math.exp(0.3)), 0.1 / (1 + math.exp(0.15))
    for gradient, value in zip(found, [-answers - pictures, answers, pictures], strict=True):
        assert gradient.flatten().tolist() == pytest.approx([value] * gradient.numel(), abs=1e-15)


def test_a_retrieved_picture_that_is_the_picture_adds_log_2_to_dpo(random_pair, same_rows):
    found, plain = rdpo(same_rows(random_pair, ROWS), beta=0.4), dpo(random_pair, beta=0.4)
    assert (found.losses - plain.losses).tolist() == pytest.approx([math.log(2)] * 4, abs=1e-14)
    assert found.chosen_rewards.tolist() == plain.chosen_rewards.tolist()
    assert found.rejected_rewards.tolist() == plain.rejected_rewards.tolist()


def test_wrong_hyperparameters_and_missing_rows_are_refused_by_name(three, worked):
    with pytest.raises(UserError, match="beta is 0"):
        rdpo(three, beta=0)
    with pytest.raises(UserError, match="the row 'retrieved_chosen', which the data does not have"):
        rdpo(worked)
    with pytest.raises(UserError, match="'reference'"):
        rdpo(replace(three, ref_extra={}))
