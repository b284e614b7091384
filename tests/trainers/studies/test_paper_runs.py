import pandas as pd

from diagnostics.pairs import PreferencePair
from trainers.studies import paper_runs
from trainers.studies.paper_runs import Order, Trial
from trainers.worlds import lm

BASE = Trial({"seed": 0}, {"objective": "dpo", "beta": 0.1, "data": "a.jsonl", "seed": 0})


def test_another_run_keeps_what_it_does_not_change():
    other = BASE.but({"case": "half"}, data="b.jsonl")
    assert (other.labels, other.keys) == ({"seed": 0, "case": "half"}, BASE.keys | {"data": "b.jsonl"})
    assert BASE.keys["data"] == "a.jsonl"


def test_beta_is_the_objectives_own():
    other = BASE.by({"method": "SimPO"}, "simpo", learning_rate=1e-3)
    assert other.keys == {"objective": "simpo", "data": "a.jsonl", "seed": 0, "learning_rate": 1e-3}
    assert BASE.by({}, "ipo", beta=0.5).keys["beta"] == 0.5


def test_the_given_model_and_data_stand_in_for_the_papers(tmp_path):
    settings = {"beta": 0.1, "model": "theirs", "data": "theirs", "entries": "dpo", "pairs probed": 4, "split": None}
    order = Order("paper", tmp_path, seeds=2, model="mine", first=3)
    bases = paper_runs.given_bases(order, settings, probe_pairs=4)
    assert [base.labels for base in bases] == [{"world": "given", "seed": seed} for seed in (3, 4)]
    shared = {"beta": 0.1, "model": "mine", "data": "theirs", "tokens": "none", "probe_pairs": 4}
    assert [base.keys for base in bases] == [shared | {"seed": seed} for seed in (3, 4)]


def test_what_follows_is_trained_after_finished_runs_alone(tmp_path, monkeypatch):
    def train(order, trials):
        return pd.DataFrame([t.labels | {"run": f"runs/{t.labels['case']}", "failed": t.keys["fails"]} for t in trials])

    monkeypatch.setattr(paper_runs, "train", train)
    first = [Trial({"case": "a"}, {"fails": ""}), Trial({"case": "b"}, {"fails": "stopped"})]
    order = Order("toy", tmp_path)
    table = paper_runs.train_then(order, first, lambda trial, run: [trial.but({"case": f"after {run.name}"})])
    assert table["case"].tolist() == ["a", "b", "after a"]
    assert paper_runs.train_then(order, first, lambda *_: [])["case"].tolist() == ["a", "b"]
    done = paper_runs.finished(order, table)
    assert [(row["case"], run) for row, run in done] == [
        ("a", tmp_path / "runs" / "a"), ("after a", tmp_path / "runs" / "after a")
    ]  # fmt: skip


def test_measured_labels_the_rows_of_each_task(tmp_path):
    table = paper_runs.measured(Order("toy", tmp_path), lambda n: [{"x": k} for k in range(n)], [(2,), (1,)],
                                [{"seed": 5}, {"seed": 6}])  # fmt: skip
    assert table.to_dict("list") == {"x": [0, 1, 0], "seed": [5, 5, 6]}


def test_pairs_that_are_too_long_are_left_out():
    tokenizer = lm.word_tokenizer(["a", "b", "c"])
    pairs = [PreferencePair("p", 0, "a", "b", "c"), PreferencePair("q", 1, "a", "b b b b", "c")]
    assert [pair.pair_id for pair in paper_runs.examples(pairs, tokenizer)] == ["p", "q"]
    assert [pair.pair_id for pair in paper_runs.examples(pairs, tokenizer, 3)] == ["p"]


def test_data_are_written_as_lines_under_their_name(tmp_path):
    path = paper_runs.write_data(Order("toy", tmp_path), "mine", [{"a": 1}, {"a": 2}])
    assert path == str(tmp_path / "data" / "mine.jsonl")
    assert (tmp_path / "data" / "mine.jsonl").read_text(encoding="utf-8") == '{"a": 1}\n{"a": 2}\n'
