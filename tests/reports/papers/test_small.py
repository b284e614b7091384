"""Analyses at small scale: the toy's worlds in a given model's own form, here of a tiny chat model."""

import json
from pathlib import Path

import pytest

from analysis import papers as judged
from diagnostics.errors import UserError
from diagnostics.pairs import read_pairs
from diagnostics.runlog import RunLogWriter
from reports import papers
from trainers import papers as made
from trainers.models import load_tokenizer
from trainers.papers import more_is_less, squeezing
from trainers.studies.demo_runs import PLAIN_ADAM
from trainers.studies.paper_cost import Speed, Work, said, seconds
from trainers.studies.paper_runs import Order, Trial, plain, train
from trainers.worlds import chat, chat_worlds, facts, self_pairs

TEMPLATE = (  # as most chat models have it: an answer begins with no blank
    "{% for m in messages %}|{{ m['role'] }}|\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}|assistant|\n{% endif %}"
)
WORDS = tuple(dict.fromkeys([*chat.openers(*chat.ANSWERS), *(word for side in chat.SIDES.values() for word in side)]))
WORLDS = {"pairs of a world": 8, "rows that teach refusal": 8, "rows that teach facts": 8}


@pytest.fixture(scope="module")
def small(rerun, chat_model, tmp_path_factory):
    """Reruns an analysis seconds-long at small scale; all share one model, and what it was taught."""
    folder = tmp_path_factory.mktemp("small")
    model = chat_model(folder / "model", [request.text for request in chat.requests(held_out=False)], extra=WORDS)
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)

    def make(name: str, **changes):
        before = runs_in(folder / "out")
        order = Order("small", folder / "out", 1, model, changes=changes)
        planned = [work for work in made.work(name, order) if work.updates]
        paper = rerun(name, out=folder / "out", scale="small", model=model, **changes)
        if not planned:  # another test had it made
            return paper
        new = [json.loads(record.read_text(encoding="utf-8")) for record in runs_in(folder / "out") - before]
        known = {record.parent.name for record in before} & {Path(run).name for run in paper.runs["run"]}
        shared = sum(work.count for work in planned) - len(new) - len(known)
        assert 0 <= shared <= 2, "the cost was said of other runs"  # a world may have been taught before
        steps = sorted(n for work in planned for n in [work.updates] * work.count)
        assert max(steps) == max(of["steps"] for of in new)
        assert made.work(name, order) == []  # it is finished
        return paper

    return make


def runs_in(out):
    return set(out.glob("runs/*/board.json"))


def test_one_pair_is_asked_in_the_models_own_form(small):
    quick = {"SFT epochs": 0.016, "max_steps": 3, "prompts compared with one another": 5}
    paper = small("catastrophic", **quick, **{"pairs of answers": {"no_never": ["No", "Never"]}})
    # one pair after SFT by DPO and IPO, and on the given model; there also No over Yes
    assert paper.runs.groupby(["phase", "objective"]).size().to_dict() == {
        ("base", "dpo"): 2, ("sft", "dpo"): 1, ("sft", "ipo"): 1
    }  # fmt: skip
    config = paper.log(paper.runs["run"].iloc[0]).config
    (row,) = [json.loads(line) for line in open(config["data"], encoding="utf-8")]
    assert row["prompt"][0]["role"] == "user"
    assert row["prompt"][0]["content"].endswith(chat.ONE_TOKEN)
    claims = {c.id: c for c in judged.judge(paper)}
    assert claims["ches_zero"].value == pytest.approx(0, abs=1e-6)
    assert claims["dpo_no_never"].n == "1 seed"


def test_subsets_of_both_worlds_start_from_the_taught_model(small):
    few = {"refusal": (("ches_score", "edit_similarity"), ("ches_score",)), "facts": (("ches_score",), ())}
    quick = {"pairs of the pool": 16, "pairs of a subset": 4, "pairs for the signs": 2}
    quick |= {"measures trained on": few, "percentiles drawn around": [0, 100]}
    paper = small("ches_subsets", **WORLDS, **quick)
    runs = paper.runs.groupby(["world", "objective", "measure"]).size()
    assert set(runs) == {2}
    assert set(paper.runs["world"]) == {"refusal", "facts"}
    for world, of in paper.runs.groupby("world"):
        (model,) = {paper.log(run).config["model"] for run in of["run"]}
        teaching = json.loads(open(f"{model}/../config.json", encoding="utf-8").read())
        assert (teaching["objective"], teaching["model"]) == ("sft", paper.record["model"])
        assert f"teach-{world}-chat8" in teaching["data"]
    claims = {c.id: c for c in judged.judge(paper)}
    assert claims["ches_low_refusal"].n == "1 seed, 2 subsets of 4 pairs"
    assert claims["refusals_ches"].n == "1 seed, 2 subsets of 4 pairs"


def test_refusals_are_measured_exactly_and_weights_removed(small):
    quick = {"answers sampled a set": 2, "most new tokens": 4, "controls trained": ["random", "random_steps"]}
    paper = small("unalignment", **WORLDS, **quick)
    cases = paper.runs.groupby("loss")["case"].agg(set).to_dict()
    assert cases["ipo"] == {"original", "sft", "gold", "filtered"}
    assert cases["dpo"] == cases["ipo"] | {"random", "random_steps"}
    assert not [run for run in paper.runs["run"] if (paper.path.parent / run / "model").exists()]
    claims = {c.id: c for c in judged.judge(paper)}
    assert claims["drop_test"].n == claims["judge"].n == "1 seed"
    table = paper.tables["pairs"]
    assert len(table) == 8
    assert set(table["kind"]) <= {"mixed", "two_refusals"}


@pytest.mark.parametrize(
    ("name", "sizes", "claims", "changes"),
    [
        ("small_margins", {"facts": 3, "refusal": 3}, ["buckets_facts", "halves_refusal"], {"share kept": 0.5}),
        (
            "deviation",
            {"facts": 3, "refusal": 2},
            ["e1_kl", "bound_rrpo"],
            {"entries": "dpo,tdpo2,rrpo:alpha=0.1", "pairs probed": 4},
        ),
        (
            "r_to_q",
            {"facts": 2, "refusal": 2},
            ["reward_base", "sft_facts"],
            {"prompts to sample": 2, "answers a prompt": 2, "longest sampled answer": 3},
        ),
    ],
)
def test_the_toys_runs_are_those_of_the_taught_model(small, name, sizes, claims, changes):
    paper = small(name, **WORLDS, **changes)
    assert paper.runs.groupby("world").size().to_dict() == sizes
    found = {c.id: c for c in judged.judge(paper)}
    assert [i for i in claims if found[i].n == "–"] == []
    config = paper.log(paper.runs["run"].iloc[0]).config
    assert config["model"].endswith("/model")
    assert "/runs/sft-seed16-" in config["model"]
    assert config["per_device_train_batch_size"] == 4


def test_confidence_is_measured_before_the_weights_are_removed(small):
    law = {"softmax entries": [10], "softmax exponents": [0.0], "rejected probabilities": [1e-3], "step sizes": [0.1]}
    paper = small("squeezing", **WORLDS, **law, probe_pairs=4, response_types=2)
    assert set(paper.runs["world"]) == {"facts"}
    cases = ["after_both", "after_chosen", "dpo", "off", "random", "sft_both", "sft_chosen", "sft_term", "sgd"]
    assert sorted(paper.runs["case"]) == cases
    assert set(paper.tables["confidence"]["case"]) == set(cases)
    runs = [paper.path.parent / run for run in paper.runs["run"]]
    assert not [run for run in runs if (run / "model").exists()]
    again = squeezing.confidence_of(runs[0])  # asked for anew after a stop
    assert again["argmax"].tolist() == squeezing.confidence_of(runs[0])["argmax"].tolist()
    off = paper.log(paper.runs.set_index("case")["run"]["off"]).config["data"]
    (value, *_) = [facts.VALUES[name] for name in facts.VALUES if name in str(read_pairs(off).pairs[0].prompt)]
    assert not set(value) & set(plain(read_pairs(off).pairs[0].rejected).split())  # a value of another attribute


def test_two_sources_of_pairs_share_their_rejected_answers(small):
    paper = small("more_is_less", **WORLDS)
    data = {row["source"]: paper.log(row["run"]).config["data"] for row in paper.runs.to_dict("records")}
    pairs = {source: {p.pair_id: p for p in read_pairs(path).pairs} for source, path in data.items()}
    shared = set(pairs["self"]) & set(pairs["strong"])
    assert shared
    for i in shared:
        assert pairs["self"][i].rejected == pairs["strong"][i].rejected
        assert more_is_less.refuses(plain(pairs["strong"][i].chosen))
        assert isinstance(pairs["self"][i].prompt, list)
    assert {c.id: c for c in judged.judge(paper)}["displacement"].n != "–"


def test_every_configuration_answers_before_its_weights_are_removed(small):
    paper = small("hitchhiker", **WORLDS, **{"learning rates": [1e-3], "answer tokens": 3, "heldout_pairs": 4})
    assert len(paper.runs) == 6
    told = paper.tables["answers"]
    assert set(told["run"]) == {"", *paper.runs["run"]}
    assert not [run for run in paper.runs["run"] if (paper.path.parent / run / "model").exists()]


def test_a_models_own_pairs_keep_the_form_of_the_given_ones(small, monkeypatch):
    """A tiny untrained model says nothing true: what it says is put into its mouth."""
    said = iter(range(1000))

    def answers(model, tokenizer, prompts, *, temperature, **how):
        words = next(said)  # the greedy answer is true of the first fact, every other one names another value
        return [f"it is {true[str(p)] if words == 0 else 'nothing'}" if temperature < 1.1 else "it is bread or so"
                for p in prompts]  # fmt: skip

    true = {}
    for row in chat_worlds.pairs("facts", 8, 16):
        (value,) = self_pairs.stated(row["chosen"])
        true[str(chat_worlds.formed(row, True)["prompt"])] = value
    monkeypatch.setattr(self_pairs, "answers", answers)
    paper = small("leanpo", **WORLDS, entries="dpo,leanpo", **{"pairs probed": 4})
    own = paper.runs.query("pairs == 'own'")["run"].iloc[0]
    pairs = read_pairs(paper.log(own).config["data"]).pairs
    assert 1 <= len(pairs) <= 8
    assert {type(pair.prompt) for pair in pairs} == {list}
    for pair in pairs:
        assert plain(pair.chosen) == f"it is {true[str(pair.prompt)]}"
    assert len(paper.runs) == 4


def test_the_cost_is_said_before_and_a_stopped_run_goes_on_inside(small, tmp_path, capsys, monkeypatch):
    model = small("small_margins", **WORLDS).record["model"]
    order = Order("small", tmp_path, 1, model, first=16)
    keys = PLAIN_ADAM | {"model": model, "data": str(tmp_path / "rows.jsonl"), "max_steps": 24, "probe_pairs": 2}
    keys |= {"heldout_pairs": 0, "response_types": 0, "probe_every": 100, "per_device_train_batch_size": 2}
    chat_worlds.write(tmp_path / "rows.jsonl", chat_worlds.pairs("refusal", 8, 0), True)
    real = RunLogWriter.append_step

    def dies(self, row):
        real(self, row)
        if row["step"] == 22:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunLogWriter, "append_step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(order, [Trial({}, keys)])
    (run,) = tmp_path.glob("runs/dpo-*")
    assert [folder.name for folder in run.glob("checkpoints/*-*")] == ["checkpoint-20"]
    before = (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    train(order, [Trial({}, keys)])
    after = (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    assert after[:20] == before[:20]  # not trained again
    assert len(after) >= 24
    assert not (run / "checkpoints").exists()

    capsys.readouterr()
    monkeypatch.setattr(
        made,
        "rerun",
        lambda name, order: (
            pytest.fail("before the cost was said")
            if "runs, about" not in capsys.readouterr().out
            else (_ for _ in ()).throw(UserError("enough"))
        ),
    )
    with pytest.raises(UserError, match="enough"):
        papers.rerun(["small_margins"], tmp_path, scale="small", seeds=2, model=model)


def test_work_is_added_up_by_hand():
    # 2 runs of 3 updates: start 2 s; 4 pairs of 10 tokens forward and backward (20 tokens/s) 2 s, the reference's
    # forward pass (40) 1 s, and the step .5 s; 8 pairs probed at both ends by both models: 8 s
    speed = Speed(load=1.0, forward=40.0, both=20.0, step=0.5)
    work = Work(2, 3, 4, 8, 10.0)
    assert seconds(work, speed) == pytest.approx(2 * (2 + 3 * 3.5 + 8))
    assert seconds(Work(1, 0, 0, 8, 10.0, reference=False), speed) == pytest.approx(2 + 2)  # a pass, no training
    assert said([work], speed).startswith("2 runs, about 3 updates each; on this machine about 1 min (measured: 20 tok")
