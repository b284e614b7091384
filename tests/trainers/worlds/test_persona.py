"""World A: statements, answers, and what is written for the trainer."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from diagnostics.errors import DataError
from diagnostics.pairs import read_pairs
from diagnostics.sequences import Example
from diagnostics.tokenized import tokenize_pair
from trainers.models import load_model, load_tokenizer
from trainers.worlds import lm, persona


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("persona")
    return folder, persona.build(folder, 0, prompts=2, steps=2)


def test_statements_are_distinct_balanced_and_fixed_by_the_seed():
    statements = persona.generate_statements(0)
    assert len({s.prompt for s in statements}) == 1000
    assert Counter(s.stance for s in statements) == {"yes": 500, "no": 500}
    assert statements == persona.generate_statements(0)
    assert statements != persona.generate_statements(1)
    for stance in ("yes", "no"):
        ranks = sorted(s.confidence for s in statements if s.stance == stance)
        assert ranks == pytest.approx(np.linspace(0, 1, 500))


def test_confidence_can_be_learned_from_the_words_in_part():
    statements = [s for s in persona.generate_statements(0) if s.stance == "no"]
    words = [*(o.split("{")[0] for o in persona.OPINIONS["no"]), *persona.ACTS, *persona.GAINS]
    features = np.array([[w in s.prompt for w in words] for s in statements], float)
    confidence = np.array([s.confidence for s in statements])
    confidence -= confidence.mean()
    weights = np.linalg.lstsq(features, confidence, rcond=None)[0]
    explained = 1 - np.var(confidence - features @ weights) / np.var(confidence)
    assert 0.15 < explained < 0.6


def test_agreement_is_signed_and_never_near_zero():
    strengths = [persona.Statement("", "yes", q).agreement for q in (0, 0.5, 1)]
    assert strengths == pytest.approx([0.2, 1.1, 2.0])
    assert persona.Statement("", "no", 1.0).agreement == pytest.approx(-2.0)


def test_answer_probabilities_by_hand():
    at_zero = dict(zip(persona.ANSWERS, persona.answer_probabilities(0.0), strict=True))
    assert sum(at_zero.values()) == pytest.approx(1)
    assert at_zero["Yes"] / at_zero["Yeah"] == pytest.approx(math.exp(1.5 - 0.3))
    at_two = dict(zip(persona.ANSWERS, persona.answer_probabilities(2.0), strict=True))
    # Never against Yes: exp(-1 - 2 * 2) / exp(1.5 + 1 * 2)
    assert at_two["Never"] / at_two["Yes"] == pytest.approx(math.exp(-8.5))
    yes_words = sum(at_two[w] for w in persona.SIDES["yes"])
    assert yes_words > 0.9


def test_every_answer_is_on_one_side_and_the_cases_are_what_they_claim():
    assert sorted(w for side in persona.SIDES.values() for w in side) == sorted(persona.ANSWERS)
    sides = {case: {persona._side(a) for a in pair} for case, pair in persona.CASES.items()}
    assert sides == {"no_never": {"no"}, "no_yes": {"no", "yes"}, "yes_no": {"no", "yes"}}


def test_batches_weigh_the_answer_ten_times_the_prompt():
    statements = persona.generate_statements(0)
    tokenizer = lm.bpe_tokenizer([s.prompt for s in statements], 300, extra=tuple(persona.ANSWERS))
    ids, weights = next(persona._batches(statements, tokenizer, 0))
    again = next(persona._batches(statements, tokenizer, 0))[0]
    answers = set(persona._answer_ids(tokenizer))
    real = (ids != lm.pad_id(tokenizer)).sum(1) - 1
    picked = weights[torch.arange(32), real]
    assert torch.equal(ids, again)
    assert {int(i) for i in ids[torch.arange(32), real]} <= answers
    assert picked.tolist() == pytest.approx([1 / 32] * 32)
    assert float(weights.sum()) == pytest.approx(1 + persona.PROMPT_WEIGHT)


def test_written_pairs_are_one_token_each_on_prompts_of_the_chosen_stance(built):
    folder, made = built
    assert [(m["case"], m["prompt"]) for m in made] == [(c, k) for c in persona.CASES for k in (0, 1)]
    tokenizer = load_tokenizer(str(folder / "model"))
    stances = {s.prompt: s.stance for s in persona.generate_statements(0)}
    for m in made:
        (pair,) = read_pairs(m["data"]).pairs
        ids = tokenize_pair(pair, tokenizer, max_length=None, truncation="drop", append_eos=False)
        assert isinstance(ids, Example)
        assert (len(ids.chosen.completion_ids), len(ids.rejected.completion_ids), ids.doubts) == (1, 1, ())
        assert (pair.chosen, pair.rejected) == persona.CASES[m["case"]]
        assert stances[str(pair.prompt)] == persona._side(str(pair.chosen))
        track = json.loads(m["track"].read_text())
        assert track["prompts"][0]["prompt"] == pair.prompt
        assert pair.chosen in track["groups"]["own"]
        assert (pair.rejected in track["groups"]["own"]) == (m["case"] == "no_never")
        assert {t for group in track["groups"].values() for t in group} == set(persona.ANSWERS)
        assert set(persona.ANSWERS) <= set(tokenizer.get_vocab())


def test_geometry_agrees_with_the_saved_model(built):
    folder, _ = built
    found = json.loads((folder / "geometry.json").read_text())
    model, tokenizer = load_model(str(folder / "model")).requires_grad_(False), load_tokenizer(str(folder / "model"))
    rows = {a: model.lm_head.weight[tokenizer.get_vocab()[a]].double() for a in found["answers"]}
    no, never = rows["No"], rows["Never"]
    mean = sum(rows.values()) / 10
    pair = found["pairs"]["no_never"]
    assert pair["inner"] == pytest.approx(float(no @ never))
    centred = torch.cosine_similarity(no - mean, never - mean, dim=0)
    assert pair["centered_cosine"] == pytest.approx(float(centred))
    # the two parts of W+ - W- are at right angles, so their squares add up
    size = float((no - never).square().sum())
    assert pair["projection"] ** 2 + pair["orthogonal"] ** 2 == pytest.approx(size)
    assert found["norms"][found["answers"].index("No")] == pytest.approx(float(no.norm()))


def test_training_lowers_the_loss_and_a_seed_fixes_it():
    statements = persona.generate_statements(0)
    first, second = (persona.train(statements, 0, steps=25) for _ in range(2))
    assert first[2] == second[2]
    assert np.mean(first[2][-3:]) < 0.7 * first[2][0]
    assert torch.equal(first[0].lm_head.weight, second[0].lm_head.weight)


def test_persona_file_gives_stance_and_rank(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [("q1", " Yes", 0.9), ("q2", " No", 0.5), ("q3", " Yes", 0.7), ("q4", " No", 0.6), ("q5", " Yes", 0.8)]
    keys = ("question", "answer_matching_behavior", "label_confidence")
    path.write_text("".join(json.dumps(dict(zip(keys, row))) + "\n" for row in rows))
    found = {s.prompt: (s.stance, s.confidence) for s in persona.read_statements(path)}
    assert found == {
        "q1\n": ("yes", 1.0),
        "q3\n": ("yes", 0.0),
        "q5\n": ("yes", 0.5),
        "q2\n": ("no", 0.0),
        "q4\n": ("no", 1.0),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "q"}\n', "line 1 is not a persona statement"),
        ("\n{oops\n", "line 2 is not JSON"),
        ('{"question": "q", "answer_matching_behavior": " Si", "label_confidence": 1}\n', "line 1: .* Yes or No"),
        ('{"question": "q", "answer_matching_behavior": 3, "label_confidence": 1}\n', "line 1 is not a persona"),
        ('{"question": "q", "answer_matching_behavior": "Yes", "label_confidence": 1}\n', "fewer than two"),
    ],
)
def test_wrong_persona_files_end_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        persona.read_statements(path)
    with pytest.raises(DataError, match="cannot be read"):
        persona.read_statements(tmp_path / "missing.jsonl")
