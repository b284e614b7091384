"""The band's tables: worked rows, and which later measurement a prediction is held against."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.run import readings
from analysis.tables import entanglement


def row(pair_id, step, split="train", **values):
    """A pair row; measured unless told otherwise: |s_w| = 2, |s_l| = 4, <s_w, s_l> = 4."""
    base = {"chosen_grad_norm": 2.0, "rejected_grad_norm": 4.0, "grad_inner": 4.0, "chosen_logps": -10.0}
    base |= {"chosen_incentive": 1.0, "rejected_incentive": 1.0, "slack": 0.0}
    return {"pair_id": pair_id, "step": step, "split": split} | base | values


def test_edges_worked():
    """cosine 1/2, |s_l| / |s_w| = 2: the band is [0, log 4]; d_w |s_w|^2 = 4 r against d_l <s_w, s_l> = 4."""
    ratios = (2.0, 0.5, 8.0)
    rows = entanglement.measured(pd.DataFrame([row(f"p{i}", 1, chosen_incentive=r) for i, r in enumerate(ratios)]))
    assert rows["lower"].tolist() == pytest.approx([0.0] * 3)
    assert rows["upper"].tolist() == pytest.approx([math.log(4)] * 3)
    assert rows["log_ratio"].tolist() == pytest.approx([math.log(r) for r in ratios])
    assert rows["rises"].tolist() == [True, False, True]


def test_no_edges_where_gradients_oppose_and_no_ratio_without_a_push():
    rows = entanglement.measured(pd.DataFrame([row("a", 1, grad_inner=-1.0), row("b", 1, rejected_incentive=0.0)]))
    assert rows.loc[0, "lower"] == -math.inf
    assert rows.loc[0, "upper"] == math.inf
    assert math.isnan(rows.loc[1, "log_ratio"])
    steps = entanglement.by_step(rows.assign(slack=[math.inf, math.nan]))
    assert steps.loc[0, ["n", "share"]].tolist() == [1, 0]


def test_unmeasured_rows_and_logs_give_nothing():
    assert entanglement.measured(pd.DataFrame()).empty
    assert entanglement.measured(pd.DataFrame([row("a", 1, grad_inner=math.nan)])).empty
    assert entanglement.sides(pd.DataFrame({"step": [1], "loss": [0.7]})).empty


def test_realised_takes_the_next_measurement():
    """a: probe after update 3 comes before its visit at 9; b: only a visit at 9; c: never seen again; d: a probe after
    update 2 is older than its measurement before update 3."""
    pairs = pd.DataFrame(
        [
            *(row(p, 3) for p in "abcd"),
            row("a", 3, "probe", chosen_logps=-12.0),
            row("a", 9, chosen_logps=-1.0, grad_inner=math.nan),
            row("b", 9, chosen_logps=-7.0, grad_inner=math.nan),
            row("d", 2, "probe", chosen_logps=-50.0),
        ]
    )
    found = entanglement.realised(entanglement.measured(pairs), pairs).set_index("pair_id")["chosen_moved"]
    assert found[["a", "b"]].tolist() == [-2.0, 3.0]
    assert found[["c", "d"]].isna().all()


def test_agreement_counts():
    table = pd.DataFrame(
        {"rises": [True, True, False, False, True, np.nan], "chosen_moved": [1, -1, -1, -2, np.nan, 1]}
    )
    found = entanglement.agreement(table).set_index("predicted")
    assert found["n"].to_dict() == {"rises": 2, "falls": 2, "either": 4}
    assert found["right"].to_dict() == {"rises": 1, "falls": 2, "either": 3}
    assert found.loc["either", "share"] == 0.75
    assert found.loc["either", "low"] < 0.75 < found.loc["either", "high"]


def test_push_counts_pairs_above_100_by_step_and_leaves_out_what_was_not_measured():
    """ln 100 = 4.605: of gaps 1 and 5 one is above, of 4.7, 12 and 0 two are; the last step measured nothing."""
    gaps = {0: [1.0, 5.0, math.nan], 2: [4.7, 12.0, 0.0], 4: [math.nan]}
    rows = pd.DataFrame([dict(step=s, chosen_logps=g - 9.0, rejected_logps=-9.0) for s, gs in gaps.items() for g in gs])
    table = entanglement.push_by_step(rows)
    assert table["step"].tolist() == [0, 2]
    assert table["n"].tolist() == [2, 3]
    assert table["mean"].tolist() == pytest.approx([3.0, 16.7 / 3])
    assert table["share"].tolist() == pytest.approx([0.5, 2 / 3])
    assert (table["share_low"] < table["share"]).all()
    words = readings.push(table)
    assert "at step 0 in 50 % of 2 pairs (95 % interval 9 % to 91 %)" in words
    assert "at step 2 in 67 % of 3 pairs" in words
