"""Pairs made from prompts, samples and judgements."""

import json

import numpy as np
import pytest

from diagnostics.errors import DataError
from trainers.worlds.judged_pairs import gold_pairs, prefer, read_prompts, split

NAN = float("nan")


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_plain_and_benchmark_rows_are_read(tmp_path):
    rows = [
        {"prompt": "a", "category": "safe"},
        {"question_id": 1, "category": "3", "turns": ["b"], "prompt_style": "base"},
        {"question_id": 1, "category": "3", "turns": ["b in slang"], "prompt_style": "slang"},
        {"prompt": "c", "gold_refusal": "no", "gold_compliance": "sure"},
    ]
    found = read_prompts(write(tmp_path / "p.jsonl", rows))
    assert [(r["prompt"], r["category"]) for r in found] == [("a", "safe"), ("b", "3"), ("c", "")]
    assert [p["prompt"] for p in gold_pairs(found)] == ["c"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a"}\nx\n', "line 2 is not JSON"),
        ('{"text": "a"}\n', "line 1: needs prompt"),
        ('{"prompt": "a"}\n', "fewer than two"),
    ],
)
def test_bad_prompts_are_one_sentence(tmp_path, text, says):
    (tmp_path / "p.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        read_prompts(str(tmp_path / "p.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        read_prompts(str(tmp_path / "q.jsonl"))


def test_the_papers_split_is_65_of_435():
    rows = [{"id": str(k), "category": "safe" if k < 10 else ""} for k in range(445)]
    found = split(rows, 0.15, np.random.default_rng(0))
    sets = [r["set"] for r in found]
    assert (sets.count("test"), sets.count("train"), sets.count("safe")) == (65, 370, 10)
    assert sets != [r["set"] for r in split(rows, 0.15, np.random.default_rng(1))]


def test_the_lower_score_is_preferred_and_ties_are_random():
    prompts = [{"id": str(k), "prompt": f"p{k}"} for k in range(200)]
    answers = [text for _ in prompts for text in ("first", "second")]
    lower = prefer(prompts, answers, [1.0, 0.0] * 200, np.random.default_rng(0))
    assert {(p["chosen"], p["rejected"], p["kind"]) for p in lower} == {("second", "first", "mixed")}
    for scores, kind in (((0, 0), "two_refusals"), ((1, 1), "two_compliances"), ((NAN, 0), "unknown")):
        found = prefer(prompts, answers, [*map(float, scores)] * 200, np.random.default_rng(0))
        assert {p["kind"] for p in found} == {kind}
        assert 70 < sum(p["chosen"] == "first" for p in found) < 130


def test_equal_answers_make_no_pair():
    prompts = [{"id": "a", "prompt": "p"}, {"id": "b", "prompt": "q"}]
    found = prefer(prompts, ["x", "x ", "y", "z"], [0.0, 0.0, 0.0, 1.0], np.random.default_rng(0))
    assert [(p["pair_id"], p["chosen"], p["rejected"]) for p in found] == [("b", "y", "z")]
