"""LongVPO: a worked value and its gradients, DPO where both models see the same, missing rows."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.longvpo import ROWS, longvpo


@pytest.fixture
def anchored(worked, add_rows) -> PairStats:
    """The worked pair, -3 and -6 nats under the policy, with -2.5 and -5 under the reference after the anchor clip."""
    return add_rows(
        worked, anchor_chosen=([[-9.0, -9.0]], [[-1.0, -1.5]]), anchor_rejected=([[-9.0] * 3], [[-1.0, -1.0, -3.0]])
    )


def test_worked_value_and_gradients(anchored):
    """u = -3 + 2.5 = -0.5, v = -6 + 5 = -1: log(1 + e^-0.05) = 0.6684596; slopes 0.1 / (1 + e^0.05). The policy's
    log-prob after the anchor clip and the reference's after the long video have no part."""
    output = longvpo(anchored)
    assert output.losses.tolist() == pytest.approx([math.log1p(math.exp(-0.05))], abs=1e-15)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.05], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.1], abs=1e-15)
    rows = [anchored.chosen, anchored.rejected, *anchored.extra.values()]
    leaves = [row.per_token_logps for row in rows]
    chosen, rejected, *rest = torch.autograd.grad(output.losses.sum(), leaves, allow_unused=True)
    slope = 0.1 / (1 + math.exp(0.05))
    assert chosen.tolist() == [pytest.approx([-slope] * 2, abs=1e-15)]
    assert rejected.tolist() == [pytest.approx([slope] * 3, abs=1e-15)]
    assert rest == [None, None]


def test_it_is_dpo_where_the_reference_sees_the_same(random_pair, same_rows):
    for value, expected in zip(
        longvpo(same_rows(random_pair, ROWS), beta=0.4), dpo(random_pair, beta=0.4), strict=True
    ):
        assert value.tolist() == expected.tolist()


def test_wrong_hyperparameters_and_missing_rows_are_refused_by_name(anchored, worked):
    with pytest.raises(UserError, match="beta is 0"):
        longvpo(anchored, beta=0)
    with pytest.raises(UserError, match="the row 'anchor_chosen', which the data does not have"):
        longvpo(worked)
    with pytest.raises(UserError, match="'reference'"):
        longvpo(replace(anchored, ref_extra={}))
