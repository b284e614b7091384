import json

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import papers as judged
from analysis.papers import three_d
from diagnostics.errors import UserError
from trainers import papers as made
from trainers.papers import three_d as toy
from trainers.studies.paper_runs import Order
from trainers.worlds import refusal

QUICK = {"toy steps": 6, "SFT steps": 4, "num_train_epochs": 0.2}


@pytest.fixture(scope="module")
def paper(rerun):
    return rerun("three_d", **QUICK)


def test_rerun_measures_every_claim_and_starts_each_case_alike(paper):
    claims = {c.id: c for c in judged.judge(paper)}
    assert not [c.id for c in claims.values() if c.n == "–"]
    assert claims["ratio"].verdict == claims["vanish"].verdict == claims["diverge"].verdict == "holds"
    assert claims["lm_fall_refusal"].n == f"1 seed of {refusal.PAIRS} pairs"
    assert claims["lm_chosen_refusal"].n == f"1 seed of {refusal.PAIRS // 2} pairs a half"
    table = paper.tables["toy"]
    np.testing.assert_allclose(table["chosen"] + table["rejected"] + table["unseen"], 1, rtol=1e-12)
    start = table.query("step == 0 and source == 'any' and optimizer != 'narrow'")
    assert len(start) > 10
    assert (start.groupby("seed")["chosen"].nunique() == 1).all()
    assert (start["chosen_change"] == 0).all()
    # DPO's pushes are beta * sigmoid(0) = 0.05 on either side at the start
    np.testing.assert_allclose(start.query("objective == 'dpo'")["rejected_push"], 0.05)


def test_sources_draw_what_they_say():
    logps = torch.log_softmax(torch.arange(12.0, dtype=torch.float64).repeat(40, 1), -1)
    pairs = {source: toy.draw_pairs(logps, source, 3, seed=1) for source in toy.SOURCES}
    likely, unlikely = {9, 10, 11}, {0, 1, 2}
    assert set(pairs["on"].flatten().tolist()) == likely
    assert set(pairs["off"].flatten().tolist()) == unlikely
    assert set(pairs["chosen on, rejected off"][:, 0].tolist()) == likely
    assert set(pairs["chosen on, rejected off"][:, 1].tolist()) == unlikely
    assert all((of[:, 0] != of[:, 1]).all() for of in pairs.values())


def test_gradients_by_hand():
    # reference 0.1 for both, pi_w 0.2, pi_l 0.05, beta 0.1: m = ln 2 - ln 0.5 = ln 4, weight 0.1 sigmoid(-0.1 ln 4)
    weight = 0.1 / (1 + 4**0.1)
    own, other = toy.probability_gradients(*(torch.tensor([p], dtype=torch.float64) for p in (0.2, 0.05)))
    assert float(own) == pytest.approx(weight / 0.2)
    assert float(other) == pytest.approx(weight / 0.05)


def run(**columns):
    return pd.DataFrame({"step": range(len(next(iter(columns.values()))))} | columns)


def test_drop_time_by_hand():
    # rejected 0.2 -> 0.02 at step 2; chosen rises from 0.1 to at most 0.5, so nine tenths of it is 0.46, at step 4
    rows = run(rejected=[0.2, 0.1, 0.02, 0.01, 0.01, 0.01], chosen=[0.1, 0.2, 0.3, 0.4, 0.5, 0.2])
    assert three_d.drop_time(rows) == 2 / 4
    never = run(rejected=[0.2, 0.02, 0.01], chosen=[0.1, 0.05, 0.05])  # chosen never rises: the whole run, 2 steps
    assert three_d.drop_time(never) == 1 / 2


def test_at_equal_margin_by_hand():
    rows = run(
        chosen_change=[0.0, 1.0, 1.5, -1.0], rejected_change=[0.0, -2.0, -4.0, -9.0], unseen=[0.8, 0.7, 0.6, 0.9]
    )
    assert three_d.at_margin("chosen_change")(rows) == 1.5
    assert three_d.at_margin("unseen")(rows) == pytest.approx(-0.2)
    assert np.isnan(three_d.at_margin("unseen")(rows.head(2)))
    assert three_d.end("unseen")(rows) == pytest.approx(0.1)


def test_paper_scale_takes_the_given_model_and_data(rerun, stand_in, tmp_path):
    with pytest.raises(UserError, match="give --model and --data"):
        made.rerun("three_d", Order("paper", tmp_path / "none", seeds=1, changes={"toy steps": 0}))
    rows = [{"prompt": f"question {k}", "chosen": f"good answer {k}", "rejected": f"bad {k}"} for k in range(24)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = stand_in([data.read_text(encoding="utf-8")])
    paper = rerun(
        "three_d",
        out=tmp_path / "out",
        seeds=1,
        scale="paper",
        model=model,
        data=data,
        **{"toy steps": 1, "probe_pairs": 24},
    )
    found = paper.runs.set_index("case")["run"]
    assert set(found.index) == {"all", "on", "off"}
    assert paper.log(found["on"]).config["learning_rate"] == 5e-7
    likely = toy.likelihood(paper.path.parent / found["all"])
    kept = {case: paper.log(found[case]).audit.query("status == 'kept'")["pair_id"] for case in ("on", "off")}
    assert likely[kept["on"]].min() >= likely[kept["off"]].max()
    assert {"lm_fall_given", "lm_chosen_given"} <= {c.id for c in judged.judge(paper) if c.n != "–"}
