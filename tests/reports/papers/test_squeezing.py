import json

import numpy as np
import pandas as pd
import pytest

from analysis import papers as judged
from analysis.papers import squeezing
from diagnostics.pairs import read_pairs
from trainers.papers import squeezing as made
from trainers.worlds import facts

LAW = {
    "softmax entries": [10],
    "softmax exponents": [0.0, 1.0, 2.0],
    "rejected probabilities": [1e-3, 0.1],
    "step sizes": [1.0],
}
QUICK = LAW | {
    "SFT steps": 4,
    "num_train_epochs": 0.1,
    "SFT epochs on chosen": 0.2,
    "probe_pairs": 6,
    "response_types": 6,
    "probe_every": 100,
}


def test_rerun(rerun):
    paper = rerun("squeezing", seeds=1, **QUICK)
    seeds = paper.runs.groupby(["world", "case"]).size()
    assert seeds["facts"].to_dict() == dict.fromkeys(squeezing.CASES, 1)
    assert set(squeezing.CASES) - set(seeds["refusal"].index) == {"off"}
    claims = {c.id: c for c in judged.judge(paper)}
    assert [c.id for c in claims.values() if c.n == "–"] == []
    assert claims["law_rejected"].verdict == claims["law_argmax"].verdict == "holds"
    assert claims["chosen_facts"].n == "1 seed of 6 pairs"
    page = paper.path.with_name("squeezing.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 7
    rows = paper.runs.query("seed == 16 and world == 'facts'").set_index("case")["run"].to_dict()
    starts = {case: paper.log(run).config["model"] for case, run in rows.items()}
    assert starts["after_both"].endswith(f"{rows['sft_both']}/model")
    assert starts["dpo"] == starts["sft_both"]


def test_the_other_rejected_answers():
    pairs = [
        dict(pair_id="a", prompt="q", chosen="the color of mila is green .", rejected="the color of mila is blue ."),
        dict(pair_id="b", prompt="r", chosen="oren has honey as the food .", rejected="oren has rice as the food ."),
    ]
    (first, second) = made._unlikely(pairs, 0)
    word = first["rejected"].split()[-2]
    assert word in {v for name, values in facts.VALUES.items() if name != "color" for v in values}
    assert first["rejected"] == f"the color of mila is {word} ."
    assert second["rejected"].split()[2] not in facts.VALUES["food"]
    assert [p["rejected"] for p in made._random(pairs, 0)] == [pairs[1]["rejected"], pairs[0]["rejected"]]
    assert made._swapped(pairs[0])["chosen"] == pairs[0]["rejected"]


def test_changes_by_hand():
    # argmax: seed 0 starts at mean(-1, -3) = -2 and ends at mean(-.5, -.5) = -.5: change 1.5; rest falls by 1
    rows = [("start", -1.0, -2.0), ("start", -3.0, -2.0), ("end", -0.5, -3.0), ("end", -0.5, -3.0)]
    table = pd.DataFrame([dict(world="facts", case="dpo", seed=0, when=w, argmax=a, rest=r) for w, a, r in rows])
    found = squeezing.confidence(table).set_index("name")["change"]
    assert found.to_dict() == pytest.approx({"argmax": 1.5, "rest": -1.0})


def test_the_share_of_falling_neighbours_by_hand():
    # along the exponent the rest goes 0, -1, -.5 : one of two neighbours falls
    law = pd.DataFrame(dict(entries=10, p=0.1, rate=1.0, exponent=[0, 1, 2], rest=[0.0, -1.0, -0.5]))
    assert squeezing._falling(law, "exponent") == 0.5


def test_the_law_can_fail():
    law = made.law(LAW)
    assert squeezing.exact(law)["law_rich"] == 1.0
    assert squeezing.exact(law.assign(ordered=[True, False] * 3))["law_rich"] == 0.5
    assert np.isclose(made.softmax(4, 1.0, 0.1).sum(), 1)
    assert made.softmax(4, 1.0, 0.12).tolist() == pytest.approx([0.12, 0.48, 0.24, 0.16])  # 1 : 1/2 : 1/3 of .88


def test_paper_scale_on_transcripts(rerun, stand_in, tmp_path):
    def turn(k: int, answer: str) -> str:
        return f"\n\nHuman: question {k}\n\nAssistant: {answer}"

    rows = [{"chosen": turn(k, f"good {k} it is"), "rejected": turn(k, f"bad {k}")} for k in range(24)]
    data = tmp_path / "helpful.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    quick = LAW | {"probe_pairs": 8, "response_types": 8, "split": None, "pairs drawn": 16, "num_train_epochs": 1.0}
    model = stand_in([data.read_text(encoding="utf-8")])
    paper = rerun("squeezing", out=tmp_path / "out", seeds=1, scale="paper", model=model, data=data, **quick)
    config = paper.log(paper.runs["run"][0]).config
    assert (config["learning_rate"], config["optim"], config["max_length"]) == (5e-7, "rmsprop", 512)
    assert len(read_pairs(config["data"]).pairs) == 16
    unmeasured = {c.id for c in judged.judge(paper) if c.n == "–"}
    assert unmeasured == set()
    assert "chosen_given" in {c.id for c in judged.judge(paper)}
