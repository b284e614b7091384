import json
import math

import pandas as pd
import pytest

from analysis import papers as judged
from analysis.papers import dporm
from diagnostics.errors import DataError, UserError
from diagnostics.pairs import read_pairs
from trainers.papers import dporm as made
from trainers.worlds import facts

QUICK = {"SFT steps": 4, "num_train_epochs": 0.1, "explicit epochs": 0.1, "pairs of each held-out set": 6}
SETS = ["test", "question", "answer", "filler", "entity", "longer"]


def test_rerun(rerun):
    paper = rerun("dporm", seeds=2, **QUICK)
    table = paper.tables["accuracy"]
    assert table.groupby(["size", "model"])["set"].unique().map(set).map(len).to_dict() == {
        (size, model): 6 for size in ("all", "fewer") for model in dporm.MODELS
    }
    assert set(table["n"]) == {6}
    claims = {c.id: c for c in judged.judge(paper)}
    assert [c.id for c in claims.values() if c.n == "–"] == []
    assert claims["mean_drop"].n == "2 seeds, 5 shifted sets of up to 6 pairs"
    sizes = {
        row["size"]: len(read_pairs(paper.log(row["run"]).config["data"]).pairs)
        for row in paper.runs.to_dict("records")
    }
    assert sizes == {"all": facts.PAIRS, "fewer": facts.PAIRS // 4}
    assert paper.path.with_name("dporm.html").read_text(encoding="utf-8").count("data:image/webp") == 2


def test_each_set_is_shifted_in_its_own_way_only():
    table = pd.DataFrame(made.fact_sets(0, 256, 40)).set_index("set")
    train, closing = table.loc["train"], facts.FILLERS[-1]
    asked = set(zip(train["prompt"], train["chosen"].str.split().str[:2].str.join(" ")))
    assert not asked & set(
        zip(table.loc["test", "prompt"], table.loc["test", "chosen"].str.split().str[:2].str.join(" "))
    )
    for name in SETS:
        rows = table.loc[name]
        assert len(rows) == 40
        assert rows["chosen"].str.contains(closing).all() == (name == "filler")
        assert rows["chosen"].str.startswith("i can say").all() == (name == "answer")
        assert rows["prompt"].str.startswith("do you know what").all() == (name == "question")
    words = set(" ".join(train["prompt"]).split())
    known = table.loc["entity", "prompt"].map(lambda text: len(words & set(facts.ENTITIES) & set(text.split())))
    assert set(known) == {0}
    assert table.loc["longer", "chosen"].str.split().str.len().min() > train["chosen"].str.split().str.len().max()


def test_differences_by_hand():
    # implicit - fine-tuned: test .9 - .9 = 0; a .7 - .8 = -.1; b .9 - .8 = .1, so mean 0, worst a, extra 0
    at = {"implicit": (0.9, 0.7, 0.9), "fine-tuned": (0.9, 0.8, 0.8), "linear": (0.5, 0.6, 0.6), "mlp": (0.5, 0.6, 0.6)}
    at |= {"start": (0.5, 0.5, 0.7), "policy": (0.9, 0.9, 0.9)}
    rows = [
        dict(seed=s, size=size, model=m, set=name, n=10, accuracy=v)
        for s in (0, 1) for size in ("all", "fewer") for m, values in at.items()
        for name, v in zip(("test", "a", "b"), values)
    ]  # fmt: skip
    found = {name: values.mean() for name, values in dporm.differences(pd.DataFrame(rows)).items()}
    expected = dict(in_distribution=0, mean_drop=0, max_drop=-0.1, extra_loss=0, linear=0.2, mlp=0.2, start=0.2)
    assert found == pytest.approx(expected | dict(policy=0.1, fewer=0), abs=1e-12)


def test_accuracies_by_hand():
    margins = pd.DataFrame({"implicit": [1.0, -1.0, 0.0, 2.0]})
    table = made.accuracies(margins, pd.Series(["test/a", "test/b", "far/a", "far/b"]))
    assert table["accuracy"].tolist() == [0.5, 0.5]  # a tie is no hit
    assert table["n"].tolist() == [2, 2]
    unknown = made.accuracies(margins.assign(implicit=[1.0, math.nan, 0.0, 2.0]), pd.Series([*"ttff"]))
    assert unknown["accuracy"].tolist() == [1.0, 0.5]  # what was not measured is neither right nor wrong


def test_paper_scale_reads_the_column_set(rerun, stand_in, tmp_path):
    def chat(answer: str) -> list[dict]:
        return [{"role": "assistant", "content": answer}]

    def row(name: str, k: int) -> dict:
        asked = [{"role": "user", "content": f"question {k}"}]
        return {"prompt": asked, "chosen": chat(f"good {k}"), "rejected": chat(f"bad {k}"), "set": name}

    rows = [row(name, k) for name, n in (("train", 24), ("test", 6), ("maths", 6)) for k in range(n)]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    paper = rerun("dporm", out=tmp_path / "out", seeds=1, scale="paper", model=stand_in([data.read_text()]), data=data)
    assert set(paper.tables["accuracy"]["set"]) == {"test", "maths"}
    assert paper.log(paper.runs["run"][0]).config["learning_rate"] == 5e-7


def test_wrong_use_at_paper_scale(rerun, stand_in, tmp_path):
    with pytest.raises(UserError, match="column `set`"):
        rerun("dporm", out=tmp_path / "out", scale="paper")
    data = tmp_path / "mine.jsonl"
    data.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 0 has no `set`"):
        rerun("dporm", out=tmp_path / "out", scale="paper", model="m", form="raw", data=data)
