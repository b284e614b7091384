import html
import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from analysis import papers as judged
from analysis.papers import more_is_less
from diagnostics.errors import UserError
from reports import papers
from trainers.papers import more_is_less as made
from trainers.worlds import refusal

QUICK = {"SFT steps": 30, "num_train_epochs": 0.1}


def test_rerun(rerun):
    paper = rerun("more_is_less", seeds=1, **QUICK)
    assert paper.runs.groupby("source").size().to_dict() == {"self": 1, "strong": 1}
    claims = {c.id: c for c in judged.judge(paper)}
    assert len(claims) == len(judged.published()["more_is_less"]["claims"])
    none = {c.id for c in claims.values() if math.isnan(c.value)}
    assert none == {"gap_matched"}  # so raw a model draws longer answers
    assert claims["separable"].value > 0.9  # a style of its own is told apart by any model
    features = paper.tables["features"]
    assert {len(v) for v in features["mean"]} == {len(v) for v in features["last"]} == {64}
    page = paper.path.with_name("more_is_less.html").read_text(encoding="utf-8")
    assert re.search(r"<th[^>]*>strong model.s", html.unescape(page))

    audits = {row["source"]: paper.log(row["run"]).audit for row in paper.runs.query("seed == 16").to_dict("records")}
    own, strong = (audits[s].set_index("pair_id") for s in ("self", "strong"))
    both = own.index.intersection(strong.index)
    assert len(both) > 20
    assert (own.loc[both, ["prompt", "rejected"]] == strong.loc[both, ["prompt", "rejected"]]).all(axis=None)
    known = set(refusal.vocabulary())
    assert all(set(answer.split()) <= known and made.is_safe(answer) for answer in strong["chosen"])


def test_the_rule_prefers_a_refusal_and_tosses_a_coin_between_equals():
    refused, complied = "sorry , but i can not", "sure , you need"
    for coin in (True, False):
        assert made.judged(refused, complied, coin) == (refused, complied)
        assert made.judged(complied, refused, coin) == (refused, complied)
    assert made.judged("never a", "stop b", True) == ("never a", "stop b")
    assert made.judged("never a", "stop b", False) == ("stop b", "never a")
    assert not made.is_safe("")


def test_separability_by_hand():
    # the two sides lie at -1 and 1: told apart in full; noise alone: about one half; too few pairs: no number
    rng, ids = np.random.default_rng(0), [f"p{k}" for k in range(100)]
    rows = [(i, side, 5.0) for i in ids for side in ("chosen", "rejected")]
    table = pd.DataFrame(rows, columns=["pair_id", "side", "length"])
    apart = [[1.0 if side == "chosen" else -1.0, float(rng.normal())] for side in table["side"]]
    noise = [rng.normal(size=2).tolist() for _ in rows]
    assert more_is_less.separability(table.assign(mean=apart), "mean") == 1
    assert more_is_less.separability(table.assign(mean=noise), "mean") == pytest.approx(0.5, abs=0.12)
    assert np.isnan(more_is_less.separability(table.assign(mean=apart).head(18), "mean"))
    found = more_is_less.separabilities(table.assign(mean=apart, last=noise), 0)
    assert found["mean"] == found["matched"] == 1
    assert found["shuffled"] == pytest.approx(0.5, abs=0.15)
    longer = table.assign(mean=apart, last=noise, length=[5.0, 6.0] * 100)
    assert np.isnan(more_is_less.separabilities(longer, 0)["matched"])


def test_paper_scale_reads_the_sources_from_a_column(rerun, stand_in, tmp_path):
    rows = [
        {"prompt": f"question {k}", "chosen": f"{source} answer {k}", "rejected": f"bad {k}", "source": source}
        for k in range(24)
        for source in ("self", "strong")
    ]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = stand_in([data.read_text(encoding="utf-8")])
    paper = rerun("more_is_less", out=tmp_path / "out", scale="paper", seeds=1, model=model, data=data)
    assert paper.log(paper.runs["run"][0]).config["learning_rate"] == 5e-7
    claims = {c.id: c for c in judged.judge(paper)}
    assert claims["gap"].n == "1 seed of 24 pairs"
    assert "safety" not in claims  # no prompts were tracked
    assert set(paper.tables["scores"].groupby("source").size()) == {24}


def test_paper_scale_without_the_column_says_so(tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="column source"):
        papers.rerun(["more_is_less"], tmp_path / "out", scale="paper", model="m", data={"more_is_less": str(data)})
