import json
import math

import pandas as pd
import pytest

from analysis import papers as judged
from analysis.papers import deviation
from trainers.papers.deviation import method
from trainers.studies.compare import parse_entries

ENTRIES = "dpo,tdpo1,tdpo2,rrpo:alpha=0,rrpo,rrpo:phrases=false"
QUICK = {"SFT steps": 4, "num_train_epochs": 0.1, "entries": ENTRIES, "learning rates": [3e-4]}
QUICK |= {"pairs probed": 8, "pairs of the gradient bound": 2}


def test_rerun(rerun):
    paper = rerun("deviation", seeds=1, **QUICK)
    assert set(paper.runs["method"]) == {"DPO", "TDPO1", "TDPO2", "RRPO w/o TKL", "RRPO", "RRPO w/o R*"}
    claims = {c.id: c for c in judged.judge(paper)}
    for bound in ("bound_rrpo", "bound_dpo", "bound_cross"):
        assert 0 < claims[bound].value <= 1
    assert claims["kl_dpo"].n == "1 seed"
    assert math.isnan(claims["kl_dpa"].value)  # DPA was not trained, so that nothing can be said
    assert claims["kl_dpa"].verdict == "cannot be said"
    ends = deviation.ends(paper)
    assert ends.groupby("world").size().to_dict() == {"facts": 6, "refusal": 3}
    assert (ends["kl"] > 0).all()
    dpo = ends.query("method == 'DPO' and world == 'facts'").set_index("seed")
    log = paper.log(paper.runs.query("method == 'DPO' and seed == 16 and world == 'facts'")["run"].iloc[0])
    held = log.pairs.query("split == 'eval' and step == step.max()")
    assert dpo["kl"][16] == pytest.approx(held["chosen_kl"].mean())


def test_phrases_and_kl_off_are_the_papers_ablations():
    entries = parse_entries("rrpo,rrpo:phrases=false,rrpo:alpha=0,rrpo:alpha=0:phrases=false,tdpo2")
    assert [method(e) for e in entries] == ["RRPO", "RRPO w/o R*", "RRPO w/o TKL", "RRPO w/o R* w/o TKL", "TDPO2"]


def test_kl_at_a_margin_by_hand():
    # margin 0.5 at step 12 and 1.5 at step 24: 1 lies half-way, between KL 1 and 3; later turns do not count
    path = pd.DataFrame({"step": [0, 12, 24, 36], "margin": [0, 0.5, 1.5, 0.8], "kl": [0, 1, 3, 9.0]})
    assert deviation.kl_at(path, 1.0) == pytest.approx(2.0)
    assert deviation.kl_at(path, 0.25) == pytest.approx(0.5)
    assert math.isnan(deviation.kl_at(path, 1.6))


def test_ratio_by_hand():
    found = deviation.ratio(pd.Series([2.0, 8.0, 1.0, 0.0]), pd.Series([1.0, 1.0, 0.0, 1.0]), "4 seeds")
    assert found.geometric
    assert found.values[:2] == [2.0, 8.0]
    assert all(math.isnan(v) for v in found.values[2:])


def test_published_plain_means_are_those_of_the_four_benchmarks():
    table = pd.DataFrame({"method": ["RRPO", "RRPO"], "alpha": [0.01, 0.1], "seed": [0, 0]})
    said = deviation.published_points(deviation.Runs(table))
    assert said["RRPO 0.01"] == {"published KL": "1.01", "published y axis": "58.56", "published mean, %": "55.67"}
    assert said["DPO"]["published mean, %"] == "53.85"


def test_paper_scale_trains_the_given_model_with_the_papers_settings(rerun, stand_in, tmp_path):
    text = "the cat in the picture is <MASK> {} </MASK> and sits on a <MASK> {} </MASK> ."
    rows = [
        {"prompt": f"what is {k} ?", "chosen": text.format("red", f"mat {k}"), "rejected": text.format("blue", "car")}
        for k in range(40)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = stand_in([data.read_text(encoding="utf-8")])
    quick = {"split": None, "bf16": None, "pairs probed": 8, "entries": "dpo,rrpo:alpha=0.05", "learning rates": [5e-6]}
    paper = rerun("deviation", out=tmp_path / "out", seeds=1, scale="paper", model=model, data=data, **quick)
    config = paper.log(paper.runs.query("method == 'RRPO'")["run"].iloc[0]).config
    assert (config["alpha"], config["beta"], config["lora_r"], config["learning_rate"]) == (0.05, 0.5, 128, 5e-6)
    assert (paper.tables["bounds"]["phrases"] == 2).all()  # the tags of the data, not a diff
