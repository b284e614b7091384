"""The answers followed beside chosen and rejected: what they are, and that their log-probs are right."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from diagnostics.prepare import prepare
from diagnostics.runlog import read_run
from diagnostics.sampling import OWN_TOKENS
from diagnostics.sequences import Sequence
from diagnostics.token_likelihood import TokenLikelihood
from trainers.config import make_config
from trainers.loop.responses import Responses, others, shuffled
from trainers.run import train

TOKENS = TokenLikelihood(0)

EOS = 2


def greedy(model, prompt, limit) -> list[int]:
    """The most likely token, one at a time, one sequence alone."""
    ids = list(prompt)
    while len(ids) - len(prompt) < limit and (len(ids) == len(prompt) or ids[-1] != EOS):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def mean_logp(model, prompt, answer) -> float:
    """Mean log-prob a token of an answer, alone and unpadded."""
    with torch.no_grad():
        logps = model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return float(np.mean([logps[len(prompt) - 1 + k, t] for k, t in enumerate(answer)]))


def follow(pairs, **settings) -> Responses:
    return Responses(pairs, **(dict(likelihood=TOKENS, ends={EOS}, seed=0) | settings))


@pytest.mark.parametrize("packed", [False, True])
def test_the_own_answer_is_greedy_decoding(architecture, packed, make_model, make_pairs):
    model, pairs = make_model(architecture), make_pairs(6)
    longest = max(len(p.prompt_ids) + max(len(p.chosen.completion_ids), len(p.rejected.completion_ids)) for p in pairs)
    expected = {p.pair_id: greedy(model, p.prompt_ids, longest - len(p.prompt_ids)) for p in pairs}
    assert len({len(ids) for ids in expected.values()}) > 1
    if packed:
        prepare(model)
    own = {}
    follow(pairs).measure(model, own)
    assert {k: v.tolist() for k, v in own.items()} == expected
    assert max(map(len, expected.values())) <= OWN_TOKENS


def test_it_stops_at_eos_and_kept_answers_are_not_generated_again(make_model, make_pairs):
    model, pairs = make_model("llama"), make_pairs(4)
    first = {p.pair_id: greedy(model, p.prompt_ids, 1)[0] for p in pairs}
    own = {}
    follow(pairs, ends={first["pair0"]}).measure(model, own)
    assert own["pair0"].tolist() == [first["pair0"]]
    kept = {p.pair_id: torch.tensor([7, 9, EOS]) for p in pairs}
    found = follow(pairs).measure(model, dict(kept))
    for pair in pairs:
        (value,) = [v for i, name, v in found if (i, name) == (pair.pair_id, "own")]
        room = max(
            len(p.prompt_ids) + max(len(p.chosen.completion_ids), len(p.rejected.completion_ids)) for p in pairs
        ) - len(pair.prompt_ids)
        assert value == pytest.approx(mean_logp(model, pair.prompt_ids, [7, 9, EOS][:room]), abs=1e-5)


def test_log_probs_of_every_type_equal_one_sequence_alone(make_model, make_pairs):
    model, pairs = make_model("llama"), make_pairs(5)
    own, asked = {}, follow(pairs)
    found = {(i, name): value for i, name, value in asked.measure(model, own)}
    other, mixed = others(pairs), {p.pair_id: shuffled(p, 0) for p in pairs}
    answers = {"own": {k: v.tolist() for k, v in own.items()}, "other": other, "shuffled": mixed}
    expected = {
        (p.pair_id, name): mean_logp(model, p.prompt_ids, ids[p.pair_id][: asked.longest - len(p.prompt_ids)])
        for p in pairs
        for name, ids in answers.items()
        if ids[p.pair_id]
    }
    assert found == pytest.approx(expected, abs=1e-5)
    assert {name for _, name in found} == {"own", "other", "shuffled"}


def test_shuffled_keeps_the_tokens_and_the_end_and_follows_the_seed(make_pairs):
    pairs = [p for p in make_pairs(20) if len(set(p.chosen.completion_ids[:-1])) > 1]
    for pair in pairs:
        mixed = shuffled(pair, 0)
        assert Counter(mixed) == Counter(pair.chosen.completion_ids)
        assert mixed != pair.chosen.completion_ids
        assert mixed[-1] == EOS
        assert mixed == shuffled(pair, 0)
    assert any(shuffled(p, 0) != shuffled(p, 1) for p in pairs)
    same = replace(pairs[0], rows={"chosen": Sequence(pairs[0].prompt_ids, (5, 5, 5, EOS))})
    assert shuffled(same, 0) == ()
    cut = replace(pairs[0], rows={"chosen": Sequence(pairs[0].prompt_ids, (5, 6), has_eos=False)})
    assert shuffled(cut, 0) == (6, 5)


def test_the_other_answer_belongs_to_another_prompt(make_pairs):
    first, second, third = make_pairs(3)
    twin = replace(first, pair_id="twin", rows={"chosen": Sequence(first.prompt_ids, (9, EOS))})
    found = others([first, twin, second, third])
    assert found == {
        "pair0": second.chosen.completion_ids,
        "twin": second.chosen.completion_ids,
        "pair1": third.chosen.completion_ids,
        "pair2": first.chosen.completion_ids,
    }
    assert others([first, twin]) == {"pair0": (), "twin": ()}


@pytest.fixture
def go(lm_folder, pairs_file, tmp_path):
    """A short run with three pairs followed; returns its log."""

    def run(name: str, **keys):
        values = {"model": lm_folder, "data": pairs_file, "output_dir": str(tmp_path / name), "save_model": False}
        values |= {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "probe_pairs": 4, "heldout_pairs": 2}
        return read_run(train(make_config(values | {"response_types": 3, "probe_every": 2} | keys)))

    return run


def test_the_mass_table_holds_every_type_and_resumes(go):
    keys = {"save_strategy": "steps", "save_steps": 4}
    log = go("whole", **keys)
    rows = log.mass[log.mass["kind"] == "response"]
    assert rows.groupby("step")["pair_id"].nunique().eq(3).all()
    assert set(rows["name"]) == {"chosen", "rejected", "own", "other", "shuffled"}
    assert (rows[rows["step"] == 0]["change"] == 0).all()
    own = rows[(rows["name"] == "own") & (rows["step"] == 6)]
    assert (own["change"] != 0).all()
    chosen = rows[rows["name"] == "chosen"].set_index(["step", "pair_id"])["prob"]
    pairs = log.pairs[log.pairs["split"] == "probe"].set_index(["step", "pair_id"]).loc[chosen.index]
    np.testing.assert_allclose(np.log(chosen), pairs["chosen_logps"] / pairs["chosen_length"], rtol=1e-9)
    steps = log.steps.set_index("step")["probe/response/own"].dropna()
    means = rows[rows["name"] == "own"].groupby("step")["prob"].agg(lambda p: np.log(p).mean())
    np.testing.assert_allclose(steps, means, rtol=1e-9)
    said = log.samples.set_index("prompt_id")
    assert set(said["step"]) == {0}
    assert set(said.index) == set(rows["pair_id"])
    assert set(said["sampler"]) == {"policy, greedy"}
    assert said["tokens"].between(1, OWN_TOKENS).all()
    assert said["text"].str.len().gt(0).any()
    resumed = go("whole", **keys, resume=True)  # from step 4, with the own answers of step 0
    assert resumed.samples.equals(log.samples)
    again = resumed.mass[resumed.mass["kind"] == "response"]
    np.testing.assert_allclose(again["prob"], rows["prob"], rtol=1e-6)
    np.testing.assert_allclose(again["prob_start"], rows["prob_start"], rtol=1e-12)


def test_none_are_followed_when_none_are_asked_for(go):
    log = go("none", response_types=0)
    assert "response" not in set(log.mass["kind"])
    assert not [c for c in log.steps if "response" in c]
