"""Analyses at small scale: the toy's worlds in a given model's own form, here of a tiny chat model."""

import json
from pathlib import Path

import pytest

from analysis import papers as judged
from trainers import papers as made
from trainers.models import load_tokenizer
from trainers.studies.paper_runs import Order
from trainers.worlds import chat

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
    assert claims["drop_test"].n == claims["to_comply"].n == "1 seed"
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
