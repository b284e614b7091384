import json
import math

import pandas as pd
import pytest

from analysis import papers as judged
from analysis.papers import Paper, catastrophic
from diagnostics.errors import UserError
from trainers.papers import catastrophic as made
from trainers.worlds.persona import ANSWERS, Statement

QUICK = {
    "base training steps": 3,
    "SFT epochs": 0.06,
    "max_steps": 6,
    "pairs of answers": {"yes_no": ["Yes", "No"], "no_never": ["No", "Never"]},
    "more pairs on the base": {"no_yes": ["No", "Yes"]},
    "control runs": {"sgd": {"optim": "sgd", "learning_rate": 0.03}},
    "seeds of the control runs": 2,
    "prompts compared with one another": 5,
}


def test_rerun(rerun):
    paper = rerun("catastrophic", **QUICK)
    sizes = paper.runs.groupby(["phase", "objective", "control"]).size().to_dict()
    # three pairs on the base, two after SFT by DPO and by IPO, one control
    assert sizes == {("base", "dpo", ""): 3, ("base", "dpo", "sgd"): 1, ("sft", "dpo", ""): 2, ("sft", "ipo", ""): 2}
    ipo = paper.log(paper.runs.query("objective == 'ipo'")["run"].iloc[0]).config
    assert (ipo["objective"], ipo["tau"], ipo["max_steps"]) == ("ipo_sum", 0.01, 6)
    claims = {c.id: c for c in judged.judge(paper)}
    assert claims["dpo_no_never"].n == "1 seed"
    assert claims["ches_zero"].value == pytest.approx(0, abs=1e-6)
    assert claims["dpo_sure_yes"].holds is None  # that pair was not trained here
    page = paper.path.with_name("catastrophic.html").read_text(encoding="utf-8")
    assert "0.96 → 0.27" in page  # published, beside the measured value
    row = catastrophic.courses(paper).iloc[0]
    log = paper.log(row["run"])
    logps = log.pairs.query("split == 'probe'").sort_values("step")["chosen_logps"]
    assert row["p"] == pytest.approx([math.exp(v) for v in logps])
    one = paper.tables["geometry"].iloc[0]
    assert one["features_rate"] == pytest.approx(one["unembedding_rate"] + one["hidden_rate"])


def test_the_largest_fall_is_between_any_two_steps_in_order():
    assert catastrophic.largest_fall([0.2, 0.9, 0.6, 0.95, 0.5, 0.7]) == pytest.approx((0.45, 0.95, 0.5))
    assert catastrophic.largest_fall([0.1, 0.2, 0.3])[0] == 0


def test_a_fall_is_one_of_the_logarithm_and_what_was_not_measured_is_none():
    # p .5 to .4 falls by .22 nats; .5 to .4985 by .003, which is no movement; nothing is known of the third
    known = pd.DataFrame({"p": [[0.5, 0.4]] * 3, "chosen": [-0.1, -0.0015, math.nan]})
    fell = catastrophic._fell(known)
    assert fell[:2].tolist() == [1, 0]
    assert math.isnan(fell[2])


def test_a_share_of_runs_that_is_all_or_none_is_one_of_so_many_seeds():
    # ten of ten: at least .72 by Wilson, so a share of .8 cannot be said; three tenths of two runs a seed have a spread
    entry = dict(id="x", says="s", where="w", published="p", rule={"at_least": 0.8})
    assert judged._judged("catastrophic", entry, catastrophic._share([1.0] * 10)).verdict == "cannot be said"
    assert judged._judged("catastrophic", entry, catastrophic._share([1.0] * 20)).verdict == "holds"
    assert catastrophic._share([0.5, 1.0]).interval is None


def test_a_loss_that_stays_equal_did_not_rise():
    assert not catastrophic.rose([0.7, 0.6, 0.6, 0.5])
    assert catastrophic.rose([0.7, 0.6, 0.61, 0.5])


@pytest.mark.parametrize(
    ("token", "chosen", "side"),
    [
        ("Yes", "No", "other"), (" yes", "No", "other"), ("_no", "No", "same"), ("Nope", "No", "same"),
        ("Maybe", "Sure", "neither"), ("Absolutely", "Yes", "same"), ("the", "Yes", ""), ("Never", "Sure", "other"),
    ],
)  # fmt: skip
def test_sides(token, chosen, side):
    assert catastrophic.side(token, chosen) == side


def test_top_tokens_counts_runs_and_means_over_them():
    rows = [("a", 0, "Yes", 0.3), ("a", 1, "No", 0.1), ("a", 3, "Sure", 0.05), ("b", 0, "Yes", 0.5)]
    table = pd.DataFrame(rows, columns=["run", "rank", "token", "change"]).assign(step=5, answer="No")
    top = catastrophic.top_tokens(table, 5).set_index("token")
    assert top.loc["Yes", ["runs", "gained", "side"]].tolist() == [2, pytest.approx(0.4), "other"]
    assert top.loc["No", ["runs", "side"]].tolist() == [1, "same"]
    assert "Sure" not in top.index  # fourth in its run


def test_overlap_and_chance(monkeypatch, tmp_path):
    labels = dict(phase="base", seed=0, case="no_never", prompt=0)
    predicted = pd.DataFrame([labels | dict(way="unembeddings", rank=k, token_id=k, vocabulary=50) for k in range(10)])
    real = [labels | dict(objective="dpo", control="", step=1, token_id=t, change=c)
            for t, c in ((3, 0.2), (7, 0.1), (30, 0.1), (5, -0.1))]  # fmt: skip
    monkeypatch.setattr(catastrophic, "gaining", lambda paper: pd.DataFrame(real))
    (row,) = catastrophic.overlaps(Paper(tmp_path, {}, {"predicted": predicted})).to_dict("records")
    assert row["overlap"] == 2  # 3 and 7: 30 was not predicted, 5 did not gain
    assert row["chance"] == pytest.approx(10 * 10 / 50)


def test_the_papers_seeds_pick_the_papers_prompts():
    # indices among 500 statements of one behaviour; computed once with torch.randperm and its seeded generator
    statements = [Statement(str(k), "yes", 0.0) for k in range(500)]
    picked = [made.pick(statements, "yes", seed, 1)[0].prompt for seed in range(10)]
    assert picked == ["396", "74", "319", "427", "62", "397", "182", "78", "398", "148"]


def test_no_goes_with_statements_of_the_trait():
    assert [made.behaviour(answer) for answer in ("No", "Yes", "Sure")] == ["yes", "no", "no"]


def persona_file(folder):
    rows = []
    for k in range(40):
        yes, no = (" Yes", " No") if k % 2 == 0 else (" No", " Yes")
        statement = f"statement {k} is {'fine' if k % 2 == 0 else 'wrong'}"
        question = f'Is the following statement something you would say?\n"{statement}"'
        rows.append(dict(question=question, statement=statement, label_confidence=0.93 + k / 1000,
                         answer_matching_behavior=yes, answer_not_matching_behavior=no))  # fmt: skip
    path = folder / "ends-justify-means.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_paper_scale(rerun, stand_in, tmp_path):
    data = persona_file(tmp_path)
    model = stand_in([data.read_text(encoding="utf-8")], extra=tuple(a for a in ANSWERS if a != "Sure"))
    out = tmp_path / "out"
    paper = rerun("catastrophic", out=out, seeds=1, scale="paper", model=model, data=data, form="raw", max_steps=3)
    configs = [paper.log(run).config for run in paper.runs["run"]]
    assert {(c["optim"], c["learning_rate"], c.get("beta"), c.get("tau")) for c in configs} == {
        ("rmsprop", 1e-7, 0.1, None), ("rmsprop", 1e-8, None, 0.01)
    }  # fmt: skip
    assert set(paper.runs["case"]) == {"yes_no", "no_never"}  # Sure is no token of this model
    tuned = {c["model"] for c in configs} - {model}
    assert len(tuned) == 1  # one supervised phase for all seeds
    (sft,) = out.glob("runs/sft-*/config.json")
    keys = json.loads(sft.read_text(encoding="utf-8"))
    wanted = ("sft", 32, 1e-7, "rmsprop", 1.0)
    names = ("objective", "per_device_train_batch_size", "learning_rate", "optim", "num_train_epochs")
    assert tuple(keys[k] for k in names) == wanted
    labels = [json.loads(line) for line in open(keys["data"], encoding="utf-8")]
    drawn = {kind: {r["chosen"] for r in labels if kind in r["prompt"]} for kind in ("fine", "wrong")}
    assert drawn["fine"] <= {"No", "Never", "Maybe", "Perhaps"}
    assert drawn["wrong"] <= {"Yes", "Yeah", "Certainly", "Absolutely"}


def test_paper_scale_asks_for_the_statements(rerun, tmp_path):
    with pytest.raises(UserError, match="give the statements: --data"):
        rerun("catastrophic", out=tmp_path / "out", scale="paper", model="any")
