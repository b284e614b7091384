import json
from dataclasses import replace

import pytest

from analysis import papers as judged
from analysis.papers import real
from diagnostics.errors import UserError
from trainers.papers import real as trained
from trainers.studies.paper_runs import Order
from trainers.worlds import chat

QUICK = {
    "rows that teach to refuse": 16,
    "rows that teach the form": 8,
    "updates on one pair": 2,
    "pairs": 6,
    "pairs kept": 2,
    "updates on pairs": 2,
    "pairs probed": 4,
    "given pairs": 6,
    "rate on one pair": 1e-2,
}
WORDS = tuple(dict.fromkeys([*chat.openers(*chat.ANSWERS), *(word for side in chat.SIDES.values() for word in side)]))


@pytest.fixture(scope="module")
def paper(rerun, chat_model, tmp_path_factory):
    """Two seeds on a tiny chat model that knows the first words as tokens, with given pairs."""
    folder = tmp_path_factory.mktemp("real")
    rows = [{"prompt": f"say {k} ?", "chosen": f"yes {k} it is", "rejected": f"no {k}"} for k in range(20)]
    data = folder / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = chat_model(folder / "model", [request.text for request in chat.requests(held_out=False)], extra=WORDS)
    return rerun("real", out=folder / "out", seeds=2, scale="small", model=model, data=data, **QUICK)


def test_every_arm_takes_as_many_updates_from_its_own_start(paper):
    table = paper.runs
    assert set(table["seed"]) == {16, 17}
    arms = table.query("part == 'refusals'")
    assert arms.groupby("case").size().to_dict() == dict.fromkeys(real.ARMS, 2)
    assert {int(paper.log(run).steps["step"].max()) for run in arms["run"]} == {2}
    probed = {tuple(sorted(set(paper.log(run).pairs.query("split == 'probe'")["pair_id"])))
              for run in arms.query("seed == 16")["run"]}  # fmt: skip
    assert len(probed) == 1  # the same pairs, whatever was trained on
    base = table.query("part == 'taught' and case == 'refusals'")["run"].item()
    assert paper.log(arms["run"].iloc[0]).config["model"].endswith(f"{base}/model")


def test_a_filter_keeps_its_own_end(paper):
    scores = paper.tables["scores"].query("part == 'refusals' and seed == 16").set_index("pair_id")
    runs = paper.runs.query("part == 'refusals' and seed == 16").set_index("case")["run"]
    kept = {case: set(paper.log(runs[case]).audit.query("status == 'kept'")["pair_id"]) for case in real.ARMS}
    assert kept["ln_ches"] >= set(scores["ln_ches_score"].nsmallest(2).index)
    assert kept["set_rate"] >= set(scores["set_rate"].nlargest(2).index)


def test_every_claim_is_measured_and_every_change_is_from_the_start(paper):
    claims = {c.id: c for c in judged.judge(paper)}
    assert all(c.n != "–" for c in claims.values()), claims
    assert len(claims) == 18
    ends = real.ends(paper)
    one = ends.query("part == 'one_token' and case == 'no_never' and seed == 16").iloc[0]
    log = paper.log(paper.runs.query("part == 'one_token' and case == 'no_never' and seed == 16")["run"].item())
    probs = log.mass.query("kind == 'group' and name == 'opposite'").set_index("step")["prob"]
    assert one["answer: opposite"] - one["start answer: opposite"] == pytest.approx(probs[2] - probs[0])
    by_seed = ends.query("part == 'one_token' and case == 'no_never'")["chosen_p"].mean()
    assert claims["chosen_no_never"].value == pytest.approx(by_seed)


def test_without_data_its_runs_are_found_again_and_nothing_is_said_of_any(paper, monkeypatch):
    monkeypatch.setattr("trainers.studies.compare.train", lambda run: pytest.fail(f"trained again: {run.output_dir}"))
    order = Order("small", paper.path.parent, 2, paper.record["model"], first=16)
    tables = trained.make(order, paper.record["settings"])
    assert set(tables["scores"]["part"]) == {"refusals"}
    bare = replace(paper, tables=paper.tables | tables, kept={})
    assert {"fell_data", "told_set_rate_data", "told_ln_ches_data"}.isdisjoint(real.measured(bare))
    assert "No --data was given" in real.given(bare)._repr_html_()


def test_it_asks_for_a_model_and_runs_at_its_own_scale(rerun, tmp_path):
    with pytest.raises(UserError, match="give the model: a folder or a hub id"):
        rerun("real", out=tmp_path, scale="small")
    with pytest.raises(UserError, match="at scale small, not toy"):
        rerun("real", out=tmp_path)
