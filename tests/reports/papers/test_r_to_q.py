import json
import math

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analysis import papers as judged
from analysis.papers import r_to_q
from diagnostics.errors import UserError
from diagnostics.sequences import pair_of
from trainers import papers as made
from trainers.papers import r_to_q as rerun_of
from trainers.studies.paper_runs import Order

QUICK = {"SFT steps": 4, "num_train_epochs": 0.2, "prompts to sample": 6, "answers a prompt": 4}
QUICK |= {"longest sampled answer": 6, "prompts to enumerate": 1, "probe_pairs": 16}


@pytest.fixture(scope="module")
def paper(rerun):
    return rerun("r_to_q", **QUICK)


def test_rerun_measures_every_claim(paper):
    claims = {c.id: c for c in judged.judge(paper)}
    assert not [c.id for c in claims.values() if c.n == "–"]
    for name in ("exact", "untrained", "credit_start"):
        assert claims[name].verdict == "holds", name
    assert claims["identity_base"].n == "1 seed of 24 answers"
    starts = paper.runs.groupby(["world", "start"]).size().to_dict()
    assert starts == {(world, start): 1 for world in ("facts", "refusal") for start in ("base", "sft")}


def test_the_tuned_start_is_the_reference_of_its_run(paper):
    runs = paper.runs.query("world == 'facts' and seed == 16").set_index("start")["run"]
    base, tuned = (paper.log(runs[start]).config["model"] for start in ("base", "sft"))
    assert "sft-seed16" in tuned
    assert "sft-seed16" not in base


def test_heat_map_escapes_tokens():
    row = {"token": "<script>", "credit": -0.2, "decisive": True}
    html = r_to_q._token(row, 0.2)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "rgba(209,73,91,0.80)" in html


def model(seed: int, scale: float = 0.3) -> LlamaForCausalLM:
    config = LlamaConfig(vocab_size=7, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(seed)
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        made.lm_head.weight.normal_(std=scale)
    return made


def test_the_enumerated_sum_is_the_token_level_kl():
    found = rerun_of.enumerate_two(model(1), model(2), [3, 4], beta=0.5)
    assert found["answers"] == 49
    assert found["kl"] > 1e-3
    assert found["reward"] == pytest.approx(-found["kl"], rel=1e-9)
    same = rerun_of.enumerate_two(model(1), model(1), [3, 4], beta=0.5)
    assert same["reward"] == same["kl"] == 0


def test_samples_come_from_the_model_and_stop_at_eos():
    prompt = pair_of("a", 0, (3, 4), (1,), (2,))
    drawn = rerun_of.sample(model(1, 1.5), [prompt], count=4000, limit=3, seed=0, pad=0, eos=2)
    answers = [example.rows["drawn"].completion_ids for example in drawn]
    first = rerun_of._two_steps(model(1, 1.5), [3, 4])[0].exp()
    for token in range(7):
        share = sum(ids[0] == token for ids in answers) / 4000
        assert share == pytest.approx(float(first[token]), abs=4 * math.sqrt(0.25 / 4000))
    assert all(len(ids) <= 3 and 2 not in ids[:-1] for ids in answers)
    assert {len(ids) for ids in answers} == {1, 2, 3}


def test_sampled_rewards_agree_with_the_enumerated_kl():
    policy, reference = model(1), model(2)
    prompt = pair_of("a", 0, (3, 4), (1,), (2,))
    drawn = rerun_of.sample(reference, [prompt], count=4000, limit=2, seed=0, pad=0, eos=None)
    table = rerun_of.rewards(policy, reference, drawn, 0.5, 0)
    wanted = rerun_of.enumerate_two(policy, reference, [3, 4], 0.5)["kl"]
    assert len(table) == 4000
    assert table["kl"].mean() == pytest.approx(wanted, rel=0.05)
    assert table["reward"].mean() == pytest.approx(-wanted, abs=4 * table["reward"].std() / math.sqrt(4000))


def test_the_differing_part_by_hand():
    assert r_to_q.shared([1, 2, 3, 4], [1, 9, 3, 4]) == (1, 2)
    assert r_to_q.shared([1, 2], [1, 2, 2]) == (2, 0)
    rows = [
        ("p", side, k, token)
        for side, ids in (("chosen", (1, 2, 4)), ("rejected", (1, 8, 9, 4)))
        for k, token in enumerate(ids)
    ]
    table = pd.DataFrame(rows, columns=["pair_id", "side", "position", "token_id"])
    marked = r_to_q.differing(table)
    assert marked["differs"].tolist() == [False, True, False, False, True, True, False]


def test_lift_and_means_by_hand():
    # |credit| 0.3 of 0.6 on one token of four: half of the credit on a quarter of the tokens
    table = pd.DataFrame({"credit": [-0.3, 0.1, 0.1, -0.1], "decisive": [True, False, False, False]})
    assert r_to_q.lift(table, "decisive") == pytest.approx(2)
    sampled = pd.DataFrame({"start": "base", "case": "reference", "seed": 0, "prompt": ["a", "a", "b", "b"]})
    sampled = sampled.assign(reward=[-0.2, 0.0, -0.1, -0.1], kl=[0.1, 0.1, 0.2, 0.2])
    (found,) = r_to_q.means(sampled).to_dict("records")
    assert (found["reward"], found["kl"], found["n"]) == (pytest.approx(-0.1), pytest.approx(0.15), 4)
    # gaps by prompt 0 and 0.1: SD 0.0707, t(1) = 12.706: half 12.706 * 0.0707 / sqrt(2) = 0.6353
    assert found["half"] == pytest.approx(0.6353, abs=1e-3)


def test_paper_scale_takes_the_given_model_and_data(rerun, stand_in, tmp_path):
    with pytest.raises(UserError, match="give --model and --data"):
        made.rerun("r_to_q", Order("paper", tmp_path / "none", seeds=1))
    rows = [{"prompt": f"question {k}", "chosen": f"good <b> answer {k}", "rejected": f"bad {k}"} for k in range(16)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = stand_in([data.read_text(encoding="utf-8")], vocabulary=300)
    quick = {"prompts to sample": 4, "answers a prompt": 2, "longest sampled answer": 4, "prompts to enumerate": 1}
    paper = rerun("r_to_q", out=tmp_path / "out", seeds=1, scale="paper", model=model, data=data, **quick)
    config = paper.log(paper.runs.query("start == 'base'")["run"].iloc[0]).config
    assert (config["learning_rate"], config["model"]) == (5e-7, model)
    done = {c.id for c in judged.judge(paper) if c.n != "–"}
    assert {"exact", "identity_base", "sft_given", "credit_span"} <= done
    assert "credit_chosen" not in done
    assert "good <b>" not in paper.path.with_name("r_to_q-paper.html").read_text(encoding="utf-8")
