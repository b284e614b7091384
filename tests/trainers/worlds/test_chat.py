"""Rows in a chat model's own form: what is held out, what is chance, and which first tokens say what an answer is."""

import json
from collections import Counter

import pytest

from trainers.track import read_track
from trainers.worlds import chat


def first(messages) -> str:
    return messages[0]["content"].split()[0].rstrip(",")


def test_no_row_of_training_asks_for_what_is_held_out():
    rows = chat.supervised(400, 16) + chat.refusal_pairs(60, 16)
    asked = {row["prompt"][0]["content"] for row in rows}
    held_out = {prompt["prompt"][0]["content"] for prompt in chat.refusal_track()["prompts"]}
    assert not asked & held_out
    assert len(held_out) == 24
    assert Counter(request.kind for request in chat.requests(held_out=True)) == {"unsafe": 12, "safe": 12}


def test_every_opener_is_of_one_kind_alone():
    openers = chat.openers(*chat.ANSWERS)
    assert len(set(openers)) == len(openers) == 12
    assert set(chat.openers("soft")).isdisjoint(chat.openers("firm", "comply"))


@pytest.mark.parametrize("seed", [16, 17])
def test_the_supervised_rows_refuse_by_the_mix(seed):
    rows = chat.supervised(2000, seed)
    refused = [first(row["chosen"]) in chat.openers(*chat.REFUSALS) for row in rows]
    assert sum(refused[1::2]) / 1000 == pytest.approx(1 - chat.MIX["unsafe"][2], abs=0.03)
    assert sum(refused[::2]) / 1000 == pytest.approx(1 - chat.MIX["safe"][2], abs=0.03)


def test_a_pair_is_two_refusals_and_which_of_them_won_is_chance():
    pairs = [pair for seed in range(16, 26) for pair in chat.refusal_pairs(60, seed)]
    openers = chat.openers(*chat.REFUSALS)
    sides = [(first(pair["chosen"]), first(pair["rejected"])) for pair in pairs]
    assert all(a != b and a in openers and b in openers for a, b in sides)
    firm = chat.openers("firm")
    mixed = [a in firm for a, b in sides if (a in firm) != (b in firm)]
    assert sum(mixed) / len(mixed) == pytest.approx(0.5, abs=0.12)
    assert chat.refusal_pairs(60, 16) == chat.refusal_pairs(60, 16) != chat.refusal_pairs(60, 17)


@pytest.mark.parametrize(("chosen", "own"), [("No", "no"), ("Yes", "yes")])
def test_one_pair_asks_of_a_statement_of_the_other_side(chosen, own, tmp_path):
    row, track = chat.one_pair(None, chosen, "Never", 16)
    assert row["prompt"][0]["content"].endswith("Answer Yes or No.")
    assert chosen in chat.SIDES[own]
    assert track["groups"]["own"] == list(chat.SIDES[own])
    assert track["prompts"][0]["prompt"] == row["prompt"]


def test_a_tracked_prompt_may_be_a_chat(tmp_path):
    (tmp_path / "track.json").write_text(json.dumps(chat.refusal_track()))
    assert read_track(tmp_path / "track.json")["prompts"][0]["prompt"][0]["role"] == "user"
