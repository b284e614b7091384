import json
import math

import pandas as pd
import pytest

from analysis import papers as judged
from analysis.papers import small_margins
from trainers.papers import small_margins as trained
from trainers.studies.paper_runs import Order
from trainers.worlds import facts

QUICK = {"SFT steps": 4, "num_train_epochs": 0.2, "pairs drawn from given data": 40}


@pytest.fixture(scope="module")
def again(rerun, tmp_path_factory):
    """Rerun on the worlds and on given data; given again, it goes on in the same folder."""
    folder = tmp_path_factory.mktemp("small_margins")
    rows = [{"prompt": f"say {k} ?", "chosen": f"yes {k} it is", "rejected": f"no {k}"} for k in range(60)]
    data = folder / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return lambda **how: rerun("small_margins", out=folder / "out", seeds=1, data=data, **how, **QUICK)


@pytest.fixture(scope="module")
def paper(again):
    return again()


def test_rerun_with_given_data(paper):
    assert paper.runs.groupby(["world", "case"]).size().to_dict() == {
        (world, case): 1 for world in ("facts", "refusal", "given") for case in ("all", "large", "random")
    }
    claims = {c.id: c for c in judged.judge(paper)}
    assert len(claims) == 12
    assert claims["buckets_given"].n == "1 seed of 40 pairs"
    pairs = small_margins.pairs(paper)
    sizes = pairs.groupby(["world", "case", "seed"]).size()
    assert set(sizes["facts"]) == {facts.PAIRS}
    assert set(sizes["given"]) == {40}  # the halves are measured on all pairs


def test_a_subset_holds_the_largest_margins(paper):
    first = paper.runs.query("world == 'facts' and seed == 16").set_index("case")["run"]
    start = paper.log(first["all"]).pairs.query("split == 'probe' and step == 0").set_index("pair_id")
    margins = (start["ref_chosen_logps"] - start["ref_rejected_logps"]).abs()
    trained = paper.log(first["large"]).audit.query("status == 'kept'")["pair_id"]
    assert set(trained) >= set(margins.nlargest(facts.PAIRS // 2).index)


def test_stopped_before_its_end_it_goes_on_without_training_again(again, paper, monkeypatch):
    (paper.path / "paper.json").unlink()
    (paper.path / "runs.parquet").unlink()
    monkeypatch.setattr("trainers.studies.compare.train", lambda run: pytest.fail(f"trained again: {run.output_dir}"))
    assert again(shown=False).tables["runs"].equals(paper.tables["runs"])


def test_worked_gap_and_buckets():
    # ten pairs with margins 1 to 10 and change = margin: fifths are (1, 2) ... (9, 10), means 1.5 ... 9.5
    table = pd.DataFrame({"absolute": range(1, 11), "change": range(1, 11), "world": "facts", "seed": 0, "case": "all"})
    assert small_margins.buckets(table)["change"].tolist() == [1.5, 3.5, 5.5, 7.5, 9.5]
    assert small_margins._gap(table) == pytest.approx(-8)


def test_without_a_negative_margin_signed_and_absolute_cannot_be_told_apart():
    rows = pd.DataFrame({"signed": [1.0, 2.0, 3.0], "absolute": [1.0, 2.0, 3.0], "change": [2.0, 1.0, 3.0]})
    assert math.isnan(small_margins._signed_lead(rows))
    # signed -1, 2, 3 against change -2, 1, 3: |rho| 1; absolute 1, 2, 3: |rho| 1 too
    assert small_margins._signed_lead(rows.assign(signed=[-1.0, 2.0, 3.0], change=[-2.0, 1.0, 3.0])) == pytest.approx(0)


def test_another_draft_of_the_given_data_is_another_world(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(trained, "worlds", lambda order, wanted: asked.extend(wanted) or {})
    data = tmp_path / "mine.jsonl"
    for text in ("one", "two"):
        data.write_text(text, encoding="utf-8")
        trained._given(Order("toy", tmp_path, 1, data=str(data)), {"pairs drawn from given data": 4})
    assert len(set(asked)) == 2


def test_paper_scale_trains_the_given_model_on_the_given_data(rerun, stand_in, tmp_path):
    def chat(k: int, answer: str) -> list[dict]:
        return [{"role": "user", "content": f"question {k}"}, {"role": "assistant", "content": answer}]

    rows = [{"prompt": f"question {k}", "chosen": chat(k, f"good {k}"), "rejected": chat(k, "bad")} for k in range(24)]
    data = tmp_path / "ultrafeedback.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = stand_in([data.read_text(encoding="utf-8")])
    quick = {"probe_pairs": 16, "split": None}
    paper = rerun("small_margins", out=tmp_path / "out", seeds=1, scale="paper", model=model, data=data, **quick)
    config = paper.log(paper.runs["run"][0]).config
    assert (config["learning_rate"], config["beta"], config["model"]) == (5e-7, 0.1, model)
    measured = {c.id: c for c in judged.judge(paper) if c.n != "–"}
    assert {"buckets_given", "rank_given", "signed_given", "halves_given"} == set(measured)
