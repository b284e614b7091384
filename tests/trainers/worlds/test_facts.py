"""World E: facts, questions, and pairs that differ in a short phrase."""

import json

import pytest

from trainers.worlds import facts


@pytest.fixture(scope="module")
def world() -> list[facts.Fact]:
    return facts.make_facts(0)


def test_a_seed_fixes_facts_and_pairs(world):
    assert facts.make_facts(0) == world
    assert facts.make_facts(1) != world
    first, same = (facts.make_pairs(world, facts.QUESTIONS, 50, 0) for _ in range(2))
    assert first == same
    assert first != facts.make_pairs(world, facts.QUESTIONS, 50, 1)


def test_every_entity_has_every_attribute_once(world):
    assert len(world) == len({(f.entity, f.attribute) for f in world}) == 20 * 4
    assert all(len(set(values)) == 8 for values in facts.VALUES.values())
    values = [v for group in facts.VALUES.values() for v in group]
    assert len(values) == len(set(values))  # a value says which attribute it belongs to


def test_chosen_states_the_truth_and_rejected_one_wrong_value_in_the_same_sentence(world):
    pairs = facts.make_pairs(world, facts.QUESTIONS, facts.PAIRS, 0)
    truth = {(f.entity, f.attribute): f.value for f in world}
    other_filler = 0
    for pair in pairs:
        words = pair["prompt"].split()
        entity = next(w for w in words if w in facts.ENTITIES)
        attribute = next(w for w in words if w in facts.VALUES)
        filler = next(f for f in facts.FILLERS if f in pair["chosen"])
        true = truth[entity, attribute]
        wrong = (set(pair["rejected"].split()) & set(facts.VALUES[attribute])).pop()
        assert wrong != true
        again = next(f for f in facts.FILLERS if f in pair["rejected"])
        assert pair["rejected"] == pair["chosen"].replace(true, wrong).replace(filler, again)
        other_filler += again != filler
    assert 0.25 < other_filler / len(pairs) < 0.5  # 3/8 expected
    assert len({pair["pair_id"] for pair in pairs}) == facts.PAIRS


def test_held_out_questions_are_new_and_use_known_words(world):
    pairs = facts.make_pairs(world, facts.QUESTIONS, facts.PAIRS, 0)
    held_out = facts.make_pairs(world, [facts.HELD_OUT_QUESTION], facts.HELD_OUT, 0)
    assert not {p["prompt"] for p in pairs} & {p["prompt"] for p in held_out}
    trained = {w for t in (*facts.QUESTIONS, *facts.ANSWERS, *facts.FILLERS) for w in t.split()}
    assert set(facts.HELD_OUT_QUESTION.split()) <= trained
    words = set(facts.vocabulary())
    assert all(set(pair[key].split()) <= words for pair in held_out for key in ("prompt", "chosen", "rejected"))


def test_a_world_is_written_and_its_model_learns(tmp_path):
    found = facts.build(tmp_path, 0, steps=12)
    assert found == facts.paths(tmp_path)
    counts = [len(found[key].read_text().splitlines()) for key in ("data", "heldout_data")]
    assert counts == [facts.PAIRS, facts.HELD_OUT]
    assert set(json.loads(found["data"].read_text().splitlines()[0])) == {"pair_id", "prompt", "chosen", "rejected"}
    assert (found["model"] / "model.safetensors").exists()
    _, tokenizer, losses = facts.train(facts.make_facts(0), 0, steps=12)
    assert losses[-1] < 0.9 * losses[0]
    assert tokenizer.unk_token_id not in tokenizer(facts.make_facts(0)[0].answer(0, "green", 0))["input_ids"]
