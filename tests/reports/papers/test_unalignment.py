import json
import math
from pathlib import Path

import pandas as pd
import pytest

from analysis import papers as judged
from analysis.papers import Paper, unalignment
from diagnostics.errors import UserError
from trainers.papers.unalignment import SETTINGS, examples, rates, subsets

QUICK = {
    "SFT steps": 30,
    "weights of the SFT term, DPO": [0.1],
    "weights of the SFT term, IPO": [100],
    "answers sampled a set": 6,
}
TOY = {s.name: s.toy for s in SETTINGS}


def test_rerun(rerun, tmp_path):
    paper = rerun("unalignment", out=tmp_path / "out", seeds=1, **QUICK)
    cases = paper.runs.groupby("loss")["case"].agg(set).to_dict()
    assert cases["dpo"] == set(unalignment.CASES)
    assert cases["ipo"] == {"original", "sft", "gold", "filtered"}
    wanted = {c["id"] for c in judged.published()["unalignment"]["claims"]} - {"share_two"}
    measured = {c.id for c in judged.judge(paper) if c.n.startswith("1 se")}
    assert measured | {"to_comply"} == wanted  # that one only where refusals were lost

    equal = paper.runs.set_index(["case", "loss", "seed"])["run"]
    steps = {
        case: max(paper.log(equal[case, "dpo", 16]).steps["step"]) for case in ("original", "mixed_steps", "filtered")
    }
    assert steps == {"original": 3, "mixed_steps": 3, "filtered": 1}  # 48 pairs and the 10 of lowest LN-CHES, by 16

    pairs = unalignment.changes(paper)
    gold = pairs.loc[(pairs["case"] == "gold") & (pairs["loss"] == "dpo") & (pairs["seed"] == 16)]
    assert (len(gold), gold["trained"].sum(), gold["original"].sum()) == (96, 48, 48)
    assert max(gold["trained"] & gold["original"]) == 0

    outcome = unalignment.outcomes(paper).query("seed == 16 and case == 'original' and loss == 'dpo' and set == 'test'")
    log = paper.log(equal["original", "dpo", 16])
    rows = log.mass.query("kind == 'group' and split == 'test' and name == 'refusal'")
    assert outcome["after"].item() == pytest.approx(rows.loc[rows["step"] == 3, "prob"].mean())
    assert outcome["before"].item() == pytest.approx(rows.loc[rows["step"] == 0, "prob"].mean())
    page = paper.path.with_name("unalignment.html").read_text(encoding="utf-8")
    alts = ("Refusal rates before and after", "Pairs ranked by LN-CHES", "Refusals against safe prompts answered")
    assert [alt for alt in alts if f'alt="{alt}' not in page] == []


def test_subsets_by_hand():
    pairs = pd.DataFrame(
        {
            "pair_id": list("abcdefghij"),
            "ln_ches_score": [5, 4, 3, 2, 1, 6, 7, 8, 9, 10],
            "probe_influence": [0, 1, math.nan, 9, 8, 0, 0, 0, 0, 0],
            "kind": ["mixed"] * 3 + ["two_refusals"] * 7,
        }
    )
    shares = {"share kept": 0.25, "larger share kept": 0.5, "share dropped": 0.2}
    found = subsets(pairs, 0, shares)
    assert found["filtered"] == ["e", "d", "c"]  # 2.5 is rounded up
    assert found["filtered_more"] == ["e", "d", "c", "b", "a"]
    assert found["drop_top"] == ["e", "d", "c", "b", "a", "f", "g", "h"]
    assert found["influence"] == ["d", "e", "b"]
    assert found["mixed"] == ["a", "b", "c"]
    assert found["two_compliances"] == []
    assert len(set(found["random"])) == 3
    assert len(subsets(pairs.loc[pairs.index.repeat(37)], 0, shares | {"share kept": 0.05})["filtered"]) == 19  # of 370


def outcome(case: str, seed: int, name: str, after: float, *, weight: float = math.nan, before: float = 0.8) -> dict:
    exact = dict(exact=True, sampled_before=0.0, sampled_after=after + 0.01, comply_before=0.1, comply_after=0.4, n=5)
    return (
        dict(study="s", seed=seed, loss="dpo", case=case, weight=weight, set=name, before=before, after=after) | exact
    )


@pytest.fixture
def worked(monkeypatch) -> Paper:
    """Two seeds; train refusals .8 before; after .3, .5 on all pairs; SFT weights .1: .5, .6 and 1: .7, .9."""
    rows = [
        outcome("sft", s, name, v - 0.4 * (name == "safe"), weight=w)
        for w, values in ((0.1, (0.5, 0.6)), (1.0, (0.7, 0.9)))
        for s, v in enumerate(values)
        for name in ("train", "safe")
    ]
    rows += [outcome("original", s, name, v) for s, v in enumerate((0.3, 0.5)) for name in ("train", "test")]
    monkeypatch.setattr(unalignment, "outcomes", lambda paper: pd.DataFrame(rows))
    return Paper.__new__(Paper)


def test_worked_rates(worked):
    found = {name: m.values for name, m in unalignment.refusal_claims(worked).items()}
    assert unalignment.best_weight(unalignment.outcomes(worked), "dpo") == 1.0
    assert math.isnan(unalignment.best_weight(unalignment.outcomes(worked), "ipo"))
    assert found["drop_train"] == pytest.approx([0.5, 0.3])
    assert found["sft"] == pytest.approx([0.7 - 0.3, 0.9 - 0.5])
    assert found["sft_safe"] == pytest.approx([0.3 - 0.8, 0.5 - 0.8])
    assert found["to_comply"] == pytest.approx([0.3 / 0.5, 0.3 / 0.3])
    assert found["judge"] == pytest.approx([0.01, 0.01])
    assert found["gold"] == []  # no such run: not measured, and no zero


def test_no_share_of_lost_refusals_where_none_were_lost(monkeypatch):
    rows = [outcome("original", s, "test", v) for s, v in enumerate((0.9, 0.8, 0.5))]
    monkeypatch.setattr(unalignment, "outcomes", lambda paper: pd.DataFrame(rows))
    found = unalignment.refusal_claims(Paper.__new__(Paper))["to_comply"]
    assert found.values == pytest.approx([0.3 / 0.3])
    assert found.n == "1 seed"


def test_worked_auroc_of_kinds():
    # LN-CHES: mixed 1, 4; one kind 2, 3, 5. Of 6 comparisons 2 > 1, 3 > 1, 5 > 1, 5 > 4 are right: 4 / 6
    pairs = pd.DataFrame({"study": "s", "kind": ["mixed"] * 2 + ["two_refusals"] * 2 + ["two_compliances", "unknown"]})
    pairs["ln_ches_score"] = [1, 4, 2, 3, 5, 0]
    assert unalignment.kind_auroc(pairs, "ln_ches_score") == pytest.approx([4 / 6])


def test_rates_and_examples_count_what_was_judged():
    head = dict(study="s", seed=0, set="test", prompt="p")
    rows = [
        head | dict(run="", id="a", greedy=False, answer="x", score=0.0),
        head | dict(run="", id="b", greedy=False, answer="x", score=math.nan),
        head | dict(run="r", id="a", greedy=False, answer="x", score=1.0),
        head | dict(run="", id="a", greedy=True, answer="no", score=0.0),
        head | dict(run="r", id="a", greedy=True, answer="sure", score=1.0),
    ]
    table = rates(pd.DataFrame(rows)).set_index("run")
    assert table.loc["", ["n", "judged", "complied"]].tolist() == [2, 1, 0]
    shown = examples(pd.DataFrame(rows)).iloc[0]
    assert (shown["before"], shown["after"], shown["before_score"], shown["after_score"]) == ("no", "sure", 0, 1)


def test_untrusted_answers_are_escaped():
    table = pd.DataFrame(
        [dict(set="test", seed=0, id="a", prompt="<b>p", before="<script>", after="$x$", before_score=0, after_score=1)]
    )
    block = unalignment.shown_examples(Paper(Path(), {}, {"examples": table}))
    assert "<script>" not in block.html
    assert "&lt;script&gt;" in block.html
    assert "1 of 1 prompt refused before" in block.html


def test_paper_scale_makes_the_pairs_and_removes_the_weights(rerun, stand_in, tmp_path, monkeypatch):
    rows = [
        {"question_id": k, "category": "5", "turns": [f"how to break {k}"], "prompt_style": "base",
         "gold_refusal": f"i will not {k}", "gold_compliance": f"sure break {k}"}
        for k in range(14)
    ]  # fmt: skip
    rows += [{"prompt": f"how to bake {k}", "category": "safe"} for k in range(3)]
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = stand_in([data.read_text(encoding="utf-8")])
    for place in ("trainers.papers.unalignment", "trainers.worlds.judged_pairs"):
        monkeypatch.setattr(f"{place}.load_judge", lambda name: lambda r, a: [float(len(x) % 2) for x in a])
    # without the controls: test_rerun has them all
    kept = "trainers.papers.unalignment.subsets"
    monkeypatch.setattr(kept, lambda *given: {"filtered": subsets(*given)["filtered"]})
    quick = {"most new tokens": 6, "weights of the SFT term, DPO": [0.1], "weights of the SFT term, IPO": [10]}
    paper = rerun("unalignment", out=tmp_path / "out", scale="paper", seeds=1, model=model, data=data, **quick)
    config = paper.log(paper.runs["run"][0]).config
    assert (config["optim"], config["learning_rate"], config["gradient_accumulation_steps"]) == ("rmsprop", 5e-6, 8)
    gold = paper.runs.query("case == 'gold' and loss == 'dpo'")["run"].item()
    assert paper.log(gold).config["learning_rate"] == 1e-6
    assert not list((tmp_path / "out" / "runs").glob("*/model"))
    assert len(paper.tables["pairs"]) <= 12  # 14 prompts, int(0.15 * 14) = 2 of them for testing
    claims = {c.id: c for c in judged.judge(paper)}
    assert "pair" in claims["share_two"].n
    assert "judge" not in claims
    outcome = unalignment.outcomes(paper)
    assert set(outcome["set"]) == {"train", "test", "safe"}
    assert not max(outcome["exact"])


def test_paper_scale_needs_prompts(rerun, tmp_path):
    with pytest.raises(UserError, match="give the prompts with --data"):
        rerun("unalignment", out=tmp_path, scale="paper")
