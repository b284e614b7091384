import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from analysis import papers as judged
from analysis.papers import Paper, ches_subsets
from diagnostics.errors import DataError
from diagnostics.pairs import PreferencePair
from trainers.papers import ches_subsets as made
from trainers.worlds import facts, lm, refusal

PERCENTILES = {"percentiles drawn around": [0, 100]}
QUICK = PERCENTILES | {
    "SFT steps": 4, "num_train_epochs": 0.2, "pairs of the pool": 64, "pairs of a subset": 16, "pairs for the signs": 4,
}  # fmt: skip
FEW = {
    "refusal": (("ches_score", "edit_similarity", "random"), ("ches_score",)),
    "facts": (("ches_score",), ()),
    "facts_equal": (("ches_score",), ()),
    "given": (("ches_score", "length_difference", "ln_ches_score"), ()),
    "given_equal": (("ches_score",), ()),
}


def words(k: int, n: int) -> str:
    return " ".join(f"word{(k * 7 + i) % 40}" for i in range(n))


def test_rerun_with_given_data(rerun, tmp_path):
    sizes = [(3 + k % 9, 3 + k % 7) for k in range(90)]
    rows = [
        {"prompt": f"say {k}<b>?", "chosen": words(k, a), "rejected": words(k + 5, b)} for k, (a, b) in enumerate(sizes)
    ]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    paper = rerun(
        "ches_subsets",
        out=tmp_path / "out",
        seeds=1,
        data=data,
        **QUICK,
        **{"tokens at equal length": 4, "measures trained on": FEW},
    )
    runs = paper.runs.groupby(["world", "objective", "measure"]).size().to_dict()
    assert set(runs.values()) == {2}
    assert len(runs) == 10
    table = ches_subsets.changes(paper)
    assert set(table["n"]) == {16}
    assert table.loc[table["world"] == "refusal", "end_refusal"].between(0, 1).all()
    equal = paper.tables["ends"].merge(paper.runs.loc[paper.runs["world"] == "given_equal"], on="run")
    assert set(equal["start_chosen_length"]) == {4}
    claims = {c.id: c for c in judged.judge(paper)}
    assert claims["ches_low_given"].n == "1 seed, 2 subsets of 16 pairs"
    assert claims["over_length_given"].value == pytest.approx(
        (ches_subsets.span(table, "given", "ches_score") - ches_subsets.span(table, "given", "length_difference"))[0]
    )
    page = (tmp_path / "out" / "ches_subsets.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page  # the examples' text
    assert "<b>?" not in page
    first = paper.runs.query("world == 'refusal' and measure == 'ches_score' and percentile == 100")["run"].iloc[0]
    scores = paper.tables["scores"].query("world == 'refusal'").set_index("pair_id")["ches_score"]
    trained = paper.log(first).audit.query("status == 'kept'")["pair_id"]
    assert set(trained) == set(scores.nlargest(16).index)


def test_paper_scale_trains_the_given_model_on_the_papers_draw(rerun, stand_in, tmp_path):
    few = {"given": (("ches_score", "edit_similarity", "length_difference"), ("ches_score",))}

    def chat(k: int, answer: str) -> list[dict]:
        return [{"role": "user", "content": f"question {k}"}, {"role": "assistant", "content": answer}]

    rows = [
        {
            "prompt": f"question {k}",
            "chosen": chat(k, words(k, 3 + k % 5)),
            "rejected": chat(k, words(k + 9, 2 + k % 6)),
        }
        for k in range(40)
    ]
    data = tmp_path / "ultrafeedback.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = stand_in([data.read_text(encoding="utf-8")])
    quick = PERCENTILES | {
        "measures trained on": few,
        "pairs of the pool": 30,
        "pairs of a subset": 8,
        "pairs for the signs": 4,
    }
    how = {"out": tmp_path / "out", "seeds": 1, "scale": "paper", "model": model, "data": data}
    paper = rerun("ches_subsets", form="raw", **how, **quick)
    config = paper.log(paper.runs["run"][0]).config
    assert (config["learning_rate"], config["optim"], config["model"]) == (1e-7, "rmsprop", model)
    assert (config["gradient_accumulation_steps"], config["max_length"]) == (8, 512)
    assert set(paper.runs["world"]) == {"given"}
    assert len(paper.tables["scores"]) == 30
    assert paper.tables["examples"]["prompt"].str.fullmatch(r"<\|prompter\|>question \d+<\|assistant\|>").all()
    said = {c.id for c in judged.judge(paper) if c.n != "–"}
    assert {"ches_low_given", "ches_edit_given", "over_length_given", "alphas_given"} <= said


def test_a_chat_model_gets_the_draw_as_chats(tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_text(json.dumps({"prompt": "a?", "chosen": "b", "rejected": "c"}) + "\n", encoding="utf-8")
    for chat, prompt in ((True, [{"role": "user", "content": "a?"}]), (False, "<a?>")):
        folder = tmp_path / str(chat)
        folder.mkdir()
        made.write_draw(folder, str(data), None, 1, 0, "<{}>", chat)
        (row,) = map(json.loads, (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
        assert row["prompt"] == prompt


def test_too_few_pairs_is_one_sentence(tmp_path):
    pd.DataFrame({"status": ["scored"] * 3}).to_parquet(tmp_path / "scores.parquet")
    pool = made.Pool({"seed": 0}, {"data": "mine.jsonl"}, tmp_path, (), ())
    with pytest.raises(DataError, match=r"mine\.jsonl: 3 pairs can be used, and subsets of 2 need at least 4"):
        made._scores(pool, 2)


@pytest.mark.parametrize(
    ("percentile", "expected"), [(0, "abcd"), (25, "abcd"), (50, "cdef"), (75, "fghi"), (100, "ghij")]
)
def test_consecutive_pairs_around_a_percentile(percentile, expected):
    # of ten: places 0, 2.25 -> 2, 4.5 -> 4, 6.75 -> 7, 9; four from two before it, shifted into the range
    assert "".join(made.consecutive("abcdefghij", percentile, 4)) == expected


def test_the_prone_end_comes_last():
    scores = pd.DataFrame({"pair_id": ["a", "b", "c"], "ches_score": [3.0, 1.0, 2.0], "hidden_rate": [3.0, 1.0, 2.0]})
    scores["length_difference"] = [0, 0, -1]
    assert made.prone_last(scores, "ches_score") == ["b", "c", "a"]
    assert made.prone_last(scores, "hidden_rate") == ["a", "c", "b"]  # a low rate forecasts a fall
    assert made.prone_last(scores, "length_difference") == ["c", "a", "b"]


def test_equal_length_keeps_what_reads_back_as_cut():
    tokenizer = lm.bpe_tokenizer(["aa bb aa bb cc dd"] * 9, 300)
    ids = tokenizer("aa bb aa bb cc dd")["input_ids"]
    rows = [
        {"chosen": "aa bb aa bb cc dd", "rejected": "bb aa bb aa cc dd"},
        {"chosen": "aa", "rejected": "aa bb aa bb cc dd"},  # too short
        {"chosen": "aa bb aa bb cc dd", "rejected": "aa bb aa bb dd cc"},  # the same once cut
    ]
    found = made.equal_length(rows, tokenizer, len(ids) - 2)
    assert len(found) == 1
    assert found[0]["chosen"] == tokenizer.decode(ids[:-2])
    sizes = [len(tokenizer(found[0][side])["input_ids"]) for side in ("chosen", "rejected")]
    assert sizes == [len(ids) - 2] * 2


def test_the_pool_of_refusals_has_six_kinds_of_one_length():
    rows = made.refusal_pairs(3, 600)
    assert len({(r["prompt"], r["kind"]) for r in rows}) == 600
    kinds = Counter(r["kind"] for r in rows)
    assert len(kinds) == 6
    assert min(kinds.values()) > 60
    assert {len(r[side].split()) for r in rows for side in ("chosen", "rejected")} == {12}
    assert all(r["chosen"] != r["rejected"] for r in rows)
    comply = {template.split()[0] for template in refusal.RESPONSES["comply"]}
    assert all((r["rejected"].split()[0] in comply) == r["kind"].endswith("comply") for r in rows)


def test_the_pool_of_facts_prefers_the_truth_at_many_lengths():
    truth = {(f.entity, f.attribute): f.value for f in facts.make_facts(1)}
    rows = made.fact_pairs(1, 300)
    for row in rows:
        (value,) = {truth[key] for key in truth if all(word in row["prompt"].split() for word in key)}
        assert value in row["chosen"].split()
        assert value not in row["rejected"].split()
    gaps = [len(r["rejected"].split()) - len(r["chosen"].split()) for r in rows]
    assert min(gaps) < -5 < 5 < max(gaps)


def test_chat_becomes_text():
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert made.texts(PreferencePair("x", 0, chat, [chat[0]], [chat[1]])) == ("a\n\nb", "a", "b")


def subsets(changes: dict[str, list[float]], seeds: int = 2) -> pd.DataFrame:
    """A table of runs: the given change at percentiles 0, 50 and 100, one more in each further seed."""
    rows = [
        {
            "world": "given",
            "seed": seed,
            "objective": "dpo",
            "measure": name,
            "percentile": p,
            "change": value + seed,
            "n": 8,
        }
        for name, values in changes.items()
        for seed in range(seeds)
        for p, value in zip((0, 50, 100), values)
    ]
    return pd.DataFrame(rows)


def test_worked_trend_and_span():
    table = subsets(
        {"ches_score": [3.0, 1.0, -1.0], "edit_similarity": [1.0, 2.0, 0.5], "last_hidden_similarity": [1, 1, -2]}
    )
    assert ches_subsets.trend(table, "given", "ches_score") == [-1.0, -1.0]
    assert ches_subsets.span(table, "given", "ches_score").tolist() == [4.0, 4.0]
    found = ches_subsets._subsets(table, "given")
    assert list(found["ches_edit"].values) == [3.5, 3.5]
    assert list(found["ches_low"].values) == [3.0, 4.0]
    assert found["others_rise"].values == [5 / 6, 5 / 6]  # -2 falls, and -2 + 1
    assert found["ches_trend"].n == "2 seeds, 3 subsets of 8 pairs"


def test_worked_auroc(tmp_path):
    runs = pd.DataFrame({"world": "given", "seed": [0, 0], "measure": "random", "run": ["r", "s"], "failed": ""})
    ends = pd.DataFrame({
        "run": ["r"] * 4 + ["s"] * 2, "pair_id": [*"abcd", *"ab"], "start_chosen_logps": 0.0,
        "end_chosen_logps": [-1.0, 1.0, -1.0, 1.0, -0.009, -0.2], "noise": [0.0] * 4 + [0.5] * 2,
    })  # fmt: skip
    scores = pd.DataFrame({"pair_id": [*"abcd"], "ches_score": [4, 3, 2, 1], "set_rate": [-2, 1, -1, 2], "random": 0})
    tables = {"runs": runs, "ends": ends, "scores": scores.assign(world="given", seed=0)}
    table = ches_subsets.aurocs(Paper(tmp_path, {}, tables), "given").set_index("measure")["auroc"]
    # run r: a and c fell. CHES ranks a above b and d, c above d only: 3 of 4; set_rate, turned, all 4. In s none fell:
    # by less than .01 nats, or within the noise
    assert table["ches_score"] == 0.75
    assert table["set_rate"] == 1.0
    assert table["random"] == 0.5
    assert np.isnan(ches_subsets.aurocs(Paper(tmp_path, {}, tables | {"runs": runs.iloc[1:]}), "given")["auroc"]).all()
