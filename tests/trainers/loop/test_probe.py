"""The probe's names of tokens, and when one run is enough for policy and reference."""

import math

import pytest
import torch

from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.token_text import token_text
from trainers.loop.probe import Probe
from trainers.loop.reference import LiveReference
from trainers.models import load_model, load_tokenizer

TOKENS = TokenLikelihood(0)


@pytest.fixture
def start(lm_folder, make_pairs, tmp_path):
    """Policy, reference and a probe of six pairs; the reference counts its runs."""

    class Counted(LiveReference):
        runs = 0

        def __call__(self, batch):
            self.runs += 1
            return super().__call__(batch)

    policy, reference = load_model(lm_folder), Counted(load_model(lm_folder), TOKENS)
    TOKENS.prepare(policy)
    TOKENS.prepare(reference.model)
    probe = Probe(
        {"probe": make_pairs(6)}, None, likelihood=TokenLikelihood(0, head=True), reference=reference, track=None,
        start=tmp_path / "start.safetensors",
    )  # fmt: skip
    probe.texts = dict.fromkeys(range(-1, 1000), "")
    return policy, reference, probe


def measured(probe, policy):
    return probe.measure(policy, 0, 0.0, tokens=False).pairs


def test_a_reference_that_is_the_policy_is_run_once_and_gives_the_same_numbers(start):
    policy, reference, probe = start
    twice = measured(probe, policy)
    assert reference.runs == 1
    reference.exact = True  # as parity leaves it
    once = measured(probe, policy)
    assert reference.runs == 1
    assert [row["pair_id"] for row in once] == [row["pair_id"] for row in twice]
    for a, b in zip(once, twice, strict=True):
        for name, value in a.items():
            if isinstance(value, float) and not math.isnan(value):
                assert value == pytest.approx(b[name], rel=1e-6, abs=1e-5), name
        assert a["chosen_logps"] == a["ref_chosen_logps"]
        assert a["chosen_kl"] == b["chosen_kl"] == 0


def test_a_policy_that_moved_in_one_weight_is_run_beside_its_reference(start):
    policy, reference, probe = start
    reference.exact = True
    with torch.no_grad():
        policy.model.norm.weight[0] *= 1.5
    rows = measured(probe, policy)
    assert reference.runs == 1
    assert all(row["chosen_kl"] > 0 and row["chosen_logps"] != row["ref_chosen_logps"] for row in rows)


@pytest.mark.parametrize("change", ["dtype", "shape", "name"])
def test_other_weights_are_never_taken_for_the_same(start, change):
    policy, reference, _ = start
    reference.exact = True
    assert reference.same(policy)
    weight = policy.model.norm.weight
    if change == "name":
        policy.register_buffer("further", torch.ones(1))
    else:
        weight.data = weight.data.to(torch.float64) if change == "dtype" else weight.data[:1]
    assert not reference.same(policy)


def test_a_token_is_called_by_its_text_its_name_or_its_id(lm_folder):
    tokenizer = load_tokenizer(lm_folder)
    assert token_text(tokenizer, tokenizer.convert_tokens_to_ids("a")) == "a"
    part = tokenizer.convert_tokens_to_ids("Ã")  # the first byte of a letter of two
    assert token_text(tokenizer, part) == "Ã"
    assert token_text(tokenizer, len(tokenizer) + 3) == f"id {len(tokenizer) + 3}"  # a padded row of the embeddings
