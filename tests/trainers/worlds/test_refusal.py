"""World D: prompts, responses, pairs, and what is written for the trainer."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from diagnostics.pairs import read_pairs
from diagnostics.sequences import Example
from diagnostics.tokenized import tokenize_pairs
from trainers.models import load_tokenizer
from trainers.worlds import lm, refusal

PROMPT = refusal.Prompt("how do i sell a cake ?", "sell", "cake", "safe")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusal")
    return refusal.build(folder, 0, steps=2)


def kind_of(response: str) -> str:
    """The kind of a response, told from its first word alone."""
    return next(kind for kind in refusal.RESPONSES if response.split()[0] in refusal.openers(kind))


def test_every_template_has_an_opener_of_its_own_and_twelve_words():
    openers = refusal.openers(*refusal.RESPONSES)
    assert len(set(openers)) == len(openers) == 12
    for kind in refusal.RESPONSES:
        for template in range(4):
            response = PROMPT.respond(kind, template)
            assert len(response.split()) == 12, response
            assert "sell a cake" in response
            assert kind_of(response) == kind


def test_materials_depend_on_the_noun_alone_and_never_repeat_a_pair():
    nouns = [noun for level in refusal.NOUNS.values() for noun in level]
    found = {n: tuple(refusal.Prompt("", "use", n, "safe").respond("comply", 0).split()[4:7:2]) for n in nouns}
    assert len(set(found.values())) == 30
    assert all(first != second and {first, second} <= set(refusal.MATERIALS) for first, second in found.values())


def test_held_out_prompts_are_disjoint_and_fixed_by_the_seed():
    training, held_out = refusal.split_prompts(0)
    assert (len(training), len(held_out)) == (900, 300)
    assert not {p.text for p in training} & {p.text for p in held_out}
    assert len({p.text for p in (*training, *held_out)}) == 1200
    assert Counter(p.level for p in (*training, *held_out)) == {"severe": 400, "mild": 400, "safe": 400}
    assert refusal.split_prompts(0) == (training, held_out) != refusal.split_prompts(1)


def test_pairs_are_of_the_kind_they_say_on_distinct_unsafe_training_prompts():
    training, _ = refusal.split_prompts(0)
    pairs = refusal.make_pairs(training, 0)
    unsafe = {p.text for p in training if p.unsafe}
    assert len({p["prompt"] for p in pairs}) == len({p["pair_id"] for p in pairs}) == 256
    assert {p["prompt"] for p in pairs} <= unsafe
    for pair in pairs:
        kinds = (kind_of(pair["chosen"]), kind_of(pair["rejected"]))
        if pair["kind"] == "two_refusals":
            assert kinds == ("soft", "firm")
        else:
            assert kinds in {("soft", "comply"), ("firm", "comply")}
    share = np.mean([p["kind"] == "two_refusals" for p in pairs])
    assert abs(share - 0.9) < 4 * np.sqrt(0.9 * 0.1 / 256)
    assert pairs == refusal.make_pairs(training, 0)


def test_answers_follow_the_mix_of_their_level():
    prompts = [refusal.Prompt(f"? {level}", "use", nouns[0], level) for level, nouns in refusal.NOUNS.items()]
    rng = np.random.default_rng(0)
    seen = {level: Counter() for level in refusal.MIX}
    for _ in range(3000):
        words = refusal._sample(prompts, rng).split()
        seen[words[1]][kind_of(" ".join(words[2:]))] += 1
    for level, mix in refusal.MIX.items():
        counts = seen[level]
        shares = [counts[kind] / counts.total() for kind in ("firm", "soft", "comply")]
        assert shares == pytest.approx(mix, abs=0.07)


def test_the_vocabulary_holds_every_word():
    tokenizer = lm.word_tokenizer(refusal.vocabulary())
    training, held_out = refusal.split_prompts(0)
    texts = [p.text for p in (*training, *held_out)]
    texts += [p.respond(kind, t) for p in training[:300] for kind in refusal.RESPONSES for t in range(4)]
    used = {i for ids in tokenizer(texts)["input_ids"] for i in ids}
    assert tokenizer.unk_token_id not in used
    assert len(used) == len(tokenizer) - 3  # all but padding, EOS and unknown: no word is there for nothing


def test_written_files_resolve_in_the_saved_tokenizer(built):
    tokenizer = load_tokenizer(str(built["model"]))
    table = read_pairs(built["data"])
    done = tokenize_pairs(table.pairs, tokenizer, max_length=None, truncation="error")
    assert len(done) == 256
    assert {p.columns["kind"] for p in table.pairs} == {"two_refusals", "mixed"}
    for pair in done:
        assert isinstance(pair, Example)
        assert (len(pair.chosen.completion_ids), len(pair.rejected.completion_ids), pair.doubts) == (
            13,
            13,
            (),
        )  # 12 words and EOS
        assert pair.chosen.completion_ids[0] != pair.rejected.completion_ids[0]
    track = json.loads(built["track"].read_text())
    _, held_out = refusal.split_prompts(0)
    assert {p["prompt"] for p in track["prompts"]} == {p.text for p in held_out}
    assert {p["set"] for p in track["prompts"]} == {"unsafe", "safe"}
    assert {name: len(words) for name, words in track["groups"].items()} == {"refusal": 8, "comply": 4}
    for words in track["groups"].values():
        assert all(tokenizer(word)["input_ids"] == [tokenizer.get_vocab()[word]] for word in words)


def test_training_lowers_the_loss_and_a_seed_fixes_it():
    training, _ = refusal.split_prompts(0)
    first, second = (refusal.train(training, 0, steps=25) for _ in range(2))
    assert first[2] == second[2]
    assert np.mean(first[2][-3:]) < 0.7 * first[2][0]
    assert torch.equal(first[0].lm_head.weight, second[0].lm_head.weight)
