"""The map of when chosen answers fall: what its cells are, where their shares are read, and the rule."""

import json
import math

import pandas as pd
import pytest

from analysis import papers as judged
from analysis.papers import when
from diagnostics.errors import DataError, UserError
from diagnostics.pairs import read_pairs

QUICK = {"pairs": 4, "updates": 3, "batch": 2, "rates": [1e-3, 1e-2], "rates after SFT": [1e-2], "rows of SFT": 6}
ROWS = [{"prompt": f"say {k} ?", "chosen": f"yes {k} it is", "rejected": f"no {k}"} for k in range(24)]


def said(model, tokenizer, prompts, *, seed, **how):
    """In place of the model, which is untrained and ends no sentence: more words where the seed is odd."""
    return [f"it is {k}{' or so' * (seed % 2)}. And then" for k in range(len(prompts))]


@pytest.fixture(scope="module")
def paper(rerun, chat_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("when")
    data = folder / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    model = chat_model(folder / "model", [f"{row['prompt']} {row['chosen']} {row['rejected']}" for row in ROWS])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainers.worlds.sourced_pairs.answers", said)
        return rerun("when", out=folder / "out", scale="small", model=model, data=data, **QUICK)


def test_the_cells_of_a_seed_differ_in_what_they_are_called_by_alone(paper):
    table = paper.runs
    assert table.groupby(["start", "source"]).size().to_dict() == {
        **{("instruct", source): 4 for source in when.SOURCES},  # two winners at two rates
        **{("sft", source): 2 for source in when.SOURCES},
        ("instruct", "sft"): 1,
    }
    configs = [paper.log(run).config for run in table.query("source != 'sft'")["run"]]
    assert {(c["max_steps"], c["append_eos"], c["probe_pairs"]) for c in configs} == {(3, False, 4)}
    taught = table.query("source == 'sft'")["run"].item()
    starts = {c["model"] for c in configs}
    assert len(starts) == 2
    assert any(start.endswith(f"{taught}/model") for start in starts)


def test_a_coin_turns_the_same_pairs_round(paper):
    folders = {path.parent for path in (paper.path.parent / "worlds").glob("when-*/own-random.jsonl")}
    assert len(folders) == 2
    for folder in folders:
        for source in when.SOURCES:
            sure, drawn = (_read(folder / f"{source}-{winner}.jsonl") for winner in when.WINNERS)
            assert [{a, b} for _, a, b in sure] == [{a, b} for _, a, b in drawn]
            assert [prompt for prompt, *_ in sure] == [prompt for prompt, *_ in drawn]
            if source == "own":  # whole sentences, that of fewer tokens wins
                assert all(a.endswith(".") and b == f"{a[:-1]} or so." for _, a, b in sure)
            if source == "near":
                assert all([w for w in b.split(" ") if w != "really"] == a.split(" ") for _, a, b in sure)
            if source == "given":
                assert all((a, b) == (f"yes {k} it is", f"no {k}") for (_, a, b), k in zip(sure, map(_number, sure)))


def _read(path) -> list[tuple]:
    return [_texts((pair.prompt, pair.chosen, pair.rejected)) for pair in read_pairs(str(path)).pairs]


def _texts(row: tuple) -> tuple[str, ...]:
    """Of messages, what the last one says."""
    return tuple(text if isinstance(text, str) else text[-1]["content"] for text in row)


def _number(row: tuple) -> str:
    return row[0].split()[1]


def test_shares_are_read_at_one_margin():
    """Mean margins 0, 3, 5: 4 nats lie half-way from the second step to the third. There p0 has gone from -1 to 1 (0:
    has not fallen), p1 from 1 to -3 (-1: has)."""
    rows = pd.DataFrame({"step": [0, 0, 1, 1, 2, 2], "pair_id": ["p0", "p1"] * 3, "noise": 0.0})
    rows = rows.assign(chosen_change=[0, 0, -1, 1, 1, -3.0], margin_change=[0, 0, 3, 3, 5, 5.0])
    found = when._outcome(rows)
    assert (found["fell"], found["fell_end"], found["reached"], found["margin"]) == (0.5, 0.5, 1.0, 5.0)
    early = when._outcome(rows.query("step < 2"))  # never got there
    assert math.isnan(early["fell"])
    assert (early["fell_end"], early["reached"]) == (0.5, 0.0)


def test_the_rule_takes_the_best_predictor_and_its_best_bound(paper, monkeypatch):
    table = pd.DataFrame({"start": "instruct", "fell": [0.0, 0.1, 0.6, 0.9]})
    table = table.assign(**{name: [3.0, 1.0, 2.0, 4.0] for name in when.PREDICTORS})
    table["negative"] = [0.1, 0.2, 0.4, 0.5]
    monkeypatch.setattr(when, "cells", lambda _: table)
    law = when.rule.__wrapped__(paper)
    assert (law.name, law.rho) == ("negative", pytest.approx(1.0))
    assert law.bound == pytest.approx(0.3)
    assert law.right(table) == 1.0
    other = table.assign(negative=[0.4, 0.1, 0.1, 0.5], fell=[0.1, 0.2, 0.8, math.nan])
    assert law.right(other) == pytest.approx((0 + 0.5) / 2)  # none of one that fell, one of two that did not
    monkeypatch.setattr(when, "cells", lambda _: table.assign(fell=[0.0, 0.1, 0.2, 0.3]))
    none = when.rule.__wrapped__(paper)
    assert math.isnan(none.bound)
    assert math.isnan(none.right(table))


def test_every_claim_is_measured_and_the_map_has_every_cell(paper):
    claims = judged.judge(paper)
    assert {c.id for c in claims} == set(when.measured(paper))
    assert len(when.cells(paper)) == 18
    assert when.cells(paper)[list(when.PREDICTORS)].notna().all().all()
    own = when.cells(paper).query("source == 'own'")
    assert own["on_policy"].abs().max() < 10  # nats a token, of the same answers but for who won


def test_it_needs_data_of_short_pairs(rerun, chat_model, tmp_path):
    model = chat_model(tmp_path / "model", ["say it"])
    with pytest.raises(UserError, match="give --data"):
        rerun("when", out=tmp_path / "out", scale="small", model=model)
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 pairs of at most 96 tokens, not 16"):
        rerun("when", out=tmp_path / "out", scale="small", model=model, data=few)
    assert not (tmp_path / "out/when-small/paper.json").exists()
