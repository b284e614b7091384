"""MCM-DPO: a worked value and its gradients on all eight rows, DPO, its start, missing rows."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.mcm_dpo import ROWS, WEIGHTS, mcm_dpo

H = {  # the further rows' log-ratios
    "other_visual_chosen": 0.0,
    "other_context_chosen": 0.5,
    "other_context_rejected": -1.0,
    "other_visual_rejected": -2.0,
    "other_both_chosen": 1.5,
    "other_both_rejected": 1.0,
}


@pytest.fixture
def eight(worked, add_rows) -> PairStats:
    """The worked pair, h = 1 and -2, with the log-ratios H over a reference of -1.5 - 1.5."""
    return add_rows(worked, **{name: ([[-1.5 + h, -1.5]], [[-1.5, -1.5]]) for name, h in H.items()})


def test_worked_value_and_gradients(eight):
    """1 * (1 + 2) + 0.5 * (1 - 0) + 0.5 * (1 - 0.5) + 0.2 * (1 + 1) + 0.2 * (1 + 2) + 0.2 * (1 - 1.5) + 0.2 * (1 - 1)
    = 3 + 0.5 + 0.25 + 0.4 + 0.6 - 0.1 + 0 = 4.65; over 2.8 that is 1.6607143: log(1 + e^-0.16607143)."""
    output = mcm_dpo(eight)
    assert output.losses.tolist() == pytest.approx([0.6135549767951409], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    rows = {"chosen": eight.chosen, "rejected": eight.rejected} | eight.extra
    found = torch.autograd.grad(output.losses.sum(), [row.per_token_logps for row in rows.values()])
    slope = 0.1 / (1 + math.exp(0.465 / 2.8)) / 2.8
    weights = {"chosen": -2.8, "rejected": 1, "other_visual_chosen": 0.5, "other_context_chosen": 0.5}
    for name, gradient in zip(rows, found, strict=True):
        expected = [slope * weights.get(name, 0.2)] * gradient.numel()
        assert gradient.flatten().tolist() == pytest.approx(expected, abs=1e-15), name


def test_the_weights_are_those_of_seven_rows_and_sum_to_2_8():
    assert set(WEIGHTS) == {"rejected", *ROWS}
    assert sum(WEIGHTS.values()) == pytest.approx(2.8, abs=1e-15)


def test_where_all_seven_lose_alike_it_is_dpo(random_pair):
    own, ref = (dict.fromkeys(ROWS, side) for side in (random_pair.rejected, random_pair.ref_rejected))
    found, plain = mcm_dpo(replace(random_pair, extra=own, ref_extra=ref), beta=0.4), dpo(random_pair, beta=0.4)
    for value, expected in zip(found, plain, strict=True):
        assert value.tolist() == pytest.approx(expected.tolist(), abs=1e-14)


def test_it_starts_at_log_2(random_pair, same_rows):
    start = replace(random_pair, ref_chosen=random_pair.chosen, ref_rejected=random_pair.rejected)
    assert mcm_dpo(same_rows(start, ROWS)).losses.tolist() == pytest.approx([math.log(2)] * 4, abs=1e-15)


def test_wrong_hyperparameters_and_missing_rows_are_refused_by_name(eight):
    with pytest.raises(UserError, match="beta is -1"):
        mcm_dpo(eight, beta=-1)
    for name in ROWS:
        with pytest.raises(UserError, match=f"the row '{name}', which the data does not have"):
            mcm_dpo(replace(eight, extra={n: side for n, side in eight.extra.items() if n != name}))
    with pytest.raises(UserError, match="'reference'"):
        mcm_dpo(replace(eight, ref_extra={}))
