import json

import pandas as pd
import pytest

from analysis import papers as judged
from analysis.papers import hitchhiker
from trainers.papers import hitchhiker as made
from trainers.worlds import facts

QUICK = {
    "SFT steps": 4,
    "num_train_epochs": 0.2,
    "heldout_pairs": 12,
    "learning rates": [3e-4],
    "dpo betas": [0.1, 0.3],
    "ln_dpo betas": [5.0, 15.0],
    "simpo betas": [2.5],
    "answer tokens": 8,
}


def test_rerun(rerun):
    paper = rerun("hitchhiker", seeds=1, **QUICK)
    assert paper.runs.groupby(["pairs", "objective"]).size().to_dict() == {
        ("plain", "dpo"): 2, ("plain", "ln_dpo"): 2, ("plain", "simpo"): 1,
        ("longer", "dpo"): 1, ("longer", "ln_dpo"): 1, ("longer", "simpo"): 1,
    }  # fmt: skip
    claims = {c.id: c for c in judged.judge(paper)}
    assert len(claims) == len(judged.published()["hitchhiker"]["claims"])
    assert claims["steps"].holds
    table = hitchhiker.configurations(paper)
    assert set(table["steps"]) == {1}  # 0.2 of the 3 steps of an epoch, rounded up
    written = paper.tables["answers"]
    assert (written.loc[written["objective"] == "start", "kl"].abs() < 1e-6).all()
    assert (written.loc[written["objective"] != "start", "kl"] > 1e-6).all()
    assert (written["tokens"] <= 8).all()
    page = paper.path.with_name("hitchhiker.html").read_text(encoding="utf-8")
    assert page.count('class="figure"') == 3


def test_the_longer_pairs_differ_in_their_closing_phrase_alone(tmp_path):
    phrases = sorted(facts.FILLERS, key=lambda phrase: len(phrase.split()))
    pair = {"pair_id": "p", "prompt": "q ?", "chosen": f"a is b {phrases[1]} .", "rejected": f"a is c {phrases[2]} ."}
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(pair | {"pair_id": f"p{k}"}) + "\n" for k in range(2)), encoding="utf-8")
    place = made.lengthened(source, tmp_path / "data" / "longer.jsonl")
    first, second = (json.loads(line) for line in place.read_text(encoding="utf-8").splitlines())
    assert (first["chosen"], first["rejected"]) == (f"a is b {phrases[-1]} .", f"a is c {phrases[0]} .")
    assert second == pair | {"pair_id": "p1"}


def test_a_true_answer_names_the_value_and_no_other():
    chosen = "the color of mila is green , as everyone knows ."
    assert made.is_true("mila has green as the color .", chosen) == 1
    assert made.is_true("mila has green and red .", chosen) == 0
    assert made.is_true("mila mila mila", chosen) == 0
    assert pd.isna(made.is_true("green", "no value here"))


def test_level_reads_the_line_through_the_configurations():
    # dpo's line is 10 kl, ln_dpo's is 4: over their common range 0 to 2 the means are 10 and 4; dpo's third point,
    # beyond that range, does not count
    table = pd.DataFrame(
        {"objective": ["dpo"] * 3 + ["ln_dpo"] * 2, "kl": [0, 2, 9, 0, 2], "tokens": [0, 20, 90, 4, 4], "seed": 0}
    )
    assert hitchhiker.level(table, "kl", "tokens").to_dict() == pytest.approx({"dpo": 10, "ln_dpo": 4})
    assert hitchhiker._at_equal(table, "kl", "tokens") == pytest.approx([6])
    apart = table.assign(kl=[0, 1, 2, 3, 4])
    assert hitchhiker.level(apart, "kl", "tokens").isna().all()


def test_orders():
    one = pd.DataFrame({"dpo": [3.0, 1.0], "ln_dpo": [2.0, 1.0], "simpo": [1.0, 0.0]})
    other = pd.DataFrame({"dpo": [3.0, 2.0], "ln_dpo": [1.0, 1.0], "simpo": [2.0, 0.0]})
    # seed 0: of three pairs of methods one is turned round; seed 1: one is a tie in one table alone
    assert hitchhiker.alike(one, other) == pytest.approx([2 / 3, 5 / 6])


def test_gaps_and_spans_by_hand():
    rows = [("dpo", 0, 10.0), ("dpo", 1, 14.0), ("ln_dpo", 0, 9.0), ("ln_dpo", 1, 11.0)]
    table = pd.DataFrame(
        [dict(objective=o, rank=k, tokens=t, seed=0, learning_rate=1.0, ended=1 - k / 4) for o, k, t in rows]
    )
    assert hitchhiker._gaps(table) == [2.0]  # (10 - 9 + 14 - 11) / 2
    assert hitchhiker._gaps(table, ended=True) == [1.0]  # at rank 1 some answers never ended
    assert hitchhiker._spans(table) == [pytest.approx(11.75 - 9.75)]  # quartiles of 9 10 11 14


def test_paper_scale_sweeps_the_given_model_on_the_given_data(rerun, stand_in, tmp_path):
    rows = [{"prompt": f"question {k}", "chosen": f"a good answer {k}", "rejected": "bad"} for k in range(40)]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    quick = {k: v for k, v in QUICK.items() if "SFT" not in k} | {
        "objectives compared": ["dpo", "ln_dpo"], "gradient_accumulation_steps": 1, "answer tokens": 6,
    }  # fmt: skip
    model = stand_in([data.read_text(encoding="utf-8")])
    paper = rerun("hitchhiker", out=tmp_path / "out", scale="paper", seeds=1, model=model, data=data, **quick)
    assert len(paper.runs) == 4
    claims = {c.id: c for c in judged.judge(paper)}
    assert "long_longer" not in claims  # needs the toy's pairs
    assert "peak_true" not in claims  # no truth is known
    assert claims["quality_accuracy"].n == "1 seed of 4 configurations"
    assert paper.tables["answers"]["true"].isna().all()
