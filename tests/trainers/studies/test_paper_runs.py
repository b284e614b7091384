from dataclasses import replace

import pandas as pd
import pytest

from diagnostics.errors import UserError
from diagnostics.pairs import PreferencePair, read_pairs
from trainers.studies import paper_runs
from trainers.studies.paper_runs import Order, Trial
from trainers.worlds import lm, own_data

BASE = Trial({"seed": 0}, {"objective": "dpo", "beta": 0.1, "data": "a.jsonl", "seed": 0})


def test_another_run_keeps_what_it_does_not_change():
    other = BASE.but({"case": "half"}, data="b.jsonl")
    assert (other.labels, other.keys) == ({"seed": 0, "case": "half"}, BASE.keys | {"data": "b.jsonl"})
    assert BASE.keys["data"] == "a.jsonl"


def test_beta_is_the_objectives_own():
    other = BASE.by({"method": "SimPO"}, "simpo", learning_rate=1e-3)
    assert other.keys == {"objective": "simpo", "data": "a.jsonl", "seed": 0, "learning_rate": 1e-3}
    assert BASE.by({}, "ipo", beta=0.5).keys["beta"] == 0.5


ROWS = [{"prompt": "a b", "chosen": "b", "rejected": "c", "source": "self"}]


def given(folder, template=None):
    """An order of a tiny model, with or without a chat template, and a file of one pair of text."""
    tokenizer = lm.word_tokenizer(["a", "b", "c"])
    tokenizer.chat_template = template
    lm.save(lm.build_model(tokenizer, seed=0), tokenizer, folder / "mine")
    paper_runs.write_lines(folder / "mine.jsonl", ROWS)
    return Order("paper", folder, seeds=2, model=str(folder / "mine"), first=3)


def test_the_given_model_and_data_stand_in_for_the_papers(tmp_path):
    order, data = given(tmp_path), str(tmp_path / "mine.jsonl")
    settings = {"beta": 0.1, "model": "theirs", "data": data, "entries": "dpo", "pairs probed": 4, "split": None}
    bases = paper_runs.given_bases(order, settings, probe_pairs=4)
    assert [base.labels for base in bases] == [{"world": "given", "seed": seed} for seed in (3, 4)]
    shared = {"beta": 0.1, "model": order.model, "data": data, "split": None, "tokens": "none", "probe_pairs": 4}
    assert [base.keys for base in bases] == [shared | {"seed": seed} for seed in (3, 4)]


@pytest.mark.parametrize(("form", "chat"), [(None, True), ("chat", True), ("raw", False)])
def test_text_pairs_become_chats_where_the_model_has_a_template(form, chat, tmp_path):
    order = replace(given(tmp_path, own_data.CHAT_TEMPLATE), form=form)
    keys = paper_runs.in_form(order, str(tmp_path / "mine.jsonl"), None, str(order.model))
    (pair,) = read_pairs(keys["data"]).pairs
    assert pair.prompt == ([{"role": "user", "content": "a b"}] if chat else "a b")
    assert pair.columns["source"] == "self"  # what an analysis reads of a row is kept
    again = paper_runs.in_form(order, keys["data"], None, str(order.model))
    assert again["data"] == keys["data"]  # it has that form already
    back = paper_runs.in_form(replace(order, form="raw"), keys["data"], None, str(order.model))
    assert read_pairs(back["data"]).pairs[0].prompt == "a b"


def test_a_template_that_is_not_there_cannot_be_asked_for(tmp_path):
    order = given(tmp_path)
    assert not paper_runs.is_chat(order, str(order.model))
    with pytest.raises(UserError, match="has no chat template"):
        paper_runs.is_chat(replace(order, form="chat"), str(order.model))


def test_long_runs_of_a_given_model_keep_the_last_of_a_few_checkpoints(tmp_path):
    paper_runs.write_lines(tmp_path / "rows.jsonl", ROWS * 101)
    keys = {"data": str(tmp_path / "rows.jsonl"), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert paper_runs.updates(keys | {"num_train_epochs": 2.0}) == 52  # 26 an epoch
    assert paper_runs.updates(keys | {"num_train_epochs": 2.0, "max_steps": 7}) == 7
    assert paper_runs.checkpoints(keys | {"max_steps": 20}) == {"save_strategy": "no"}
    kept = paper_runs.checkpoints(keys | {"max_steps": 402})
    assert kept == {"save_strategy": "steps", "save_steps": 101, "save_total_limit": 1}


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
