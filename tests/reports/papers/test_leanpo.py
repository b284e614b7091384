import json
import math

import pandas as pd

from analysis import papers as judged
from analysis.papers import leanpo
from trainers.worlds import facts

ENTRIES = "dpo,simpo,leanpo,leanpo:label_smoothing=0,leanpo:alpha=0"
QUICK = {"SFT steps": 150, "num_train_epochs": 0.1, "entries": ENTRIES, "pairs probed": 8}


def test_rerun(rerun):
    paper = rerun("leanpo", seeds=1, **QUICK)
    assert paper.runs.groupby("pairs")["method"].nunique().to_dict() == {"given": 5, "own": 5}
    claims = {c.id: c for c in judged.judge(paper)}
    assert claims["leanpo_chosen_own"].n == "1 seed"
    assert math.isnan(claims["dpo_sft_given"].value)  # not among the entries
    configs = {row["method"]: paper.log(row["run"]).config for row in paper.runs.to_dict("records")}
    assert (configs["DPO"]["beta"], configs["LeanPO"]["beta"], configs["SimPO"]["beta"]) == (0.1, 2.0, 2.0)
    assert (configs["LeanPO"]["alpha"], configs["LeanPO, no SFT term"]["alpha"]) == (0.5, 0.0)
    ends = leanpo.ends(paper)
    assert len(ends) == 10
    assert ends["wrong"].between(0, 1).all()
    sizes = paper.tables["sources"].pivot(index="seed", columns="pairs", values="n")
    assert (sizes["given"] == facts.PAIRS).all()
    assert sizes["own"].between(1, facts.PAIRS).all()  # prompts without both answers are left out


def test_likelihoods_by_hand():
    # chosen of 2 tokens falls by 1 nat and of 4 tokens rises by 2; average changes -0.5 and 0.5; -0.001 is no fall
    probe = pd.DataFrame({
        "step": [0, 0, 4, 4], "pair_id": list("abab"), "chosen_logps": [-4.0, -8, -5, -6],
        "chosen_length": [2, 4, 2, 4],
        "rejected_logps": [-6.0, -4, -9, -5], "rejected_length": [2, 4, 2, 4],
        "chosen_change": [0.0, -0.001, -1, 2], "rejected_change": [0.0, 0, -3, -1],
    })  # fmt: skip
    train = probe.assign(step=[1, 2, 3, 4])
    table = leanpo.likelihoods(probe, train).set_index("step")
    last = table.loc[4]
    assert last[["chosen", "rejected", "chosen_avg", "rejected_avg", "fell"]].tolist() == [0.5, -2, 0, -0.875, 0.5]
    assert table.loc[0, ["level", "fell"]].tolist() == [-2, 0]
    # of the four training rows, ranked by average: -2 > -3 right, -2 < -1 wrong, -2.5 > -4.5 right, -1.5 < -1.25 wrong
    assert leanpo.wrong(train).tolist() == [0, 1, 0, 1]
    assert last["wrong"] == 0.5
    assert math.isnan(table.loc[0, "wrong"])


def test_paper_scale_makes_its_own_pairs_from_hints(rerun, stand_in, tmp_path):
    def chat(k: int, answer: str) -> list[dict]:
        return [{"role": "user", "content": f"question {k}"}, {"role": "assistant", "content": answer}]

    rows = [{"prompt": f"question {k}", "chosen": chat(k, f"good {k}"), "rejected": chat(k, "bad")} for k in range(40)]
    data = tmp_path / "ultrafeedback.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = stand_in([data.read_text(encoding="utf-8")])
    quick = {"split": None, "bf16": None, "pairs probed": 4, "own pairs": 12, "entries": "dpo,leanpo"}
    quick |= {"num_train_epochs": 0.3}
    out = tmp_path / "out"
    paper = rerun("leanpo", out=out, seeds=1, scale="paper", model=model, data=data, **quick)
    assert set(paper.runs["pairs"]) == {"given", "own"}
    config = paper.log(paper.runs.query("method == 'LeanPO' and pairs == 'own'")["run"].iloc[0]).config
    assert (config["learning_rate"], config["beta"], config["label_smoothing"]) == (5e-7, 2.0, 0.1)
    own = paper.tables["sources"].set_index("pairs")["n"]
    assert own["given"] == 40
    assert 0 < own["own"] <= 12
    assert len(paper.runs) == 4
