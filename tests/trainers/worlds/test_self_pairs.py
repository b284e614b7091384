import json

import pytest

from diagnostics.pairs import PreferencePair, read_pairs
from trainers.worlds import facts, self_pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts")
    facts.build(folder, 0, steps=150)
    return folder


def test_own_pairs_state_the_true_value_against_another(world, tmp_path):
    paths = {name: str(path) for name, path in facts.paths(world).items()}
    self_pairs.build_facts(tmp_path / "own", paths["model"], paths["data"], 0)
    self_pairs.build_facts(tmp_path / "again", paths["model"], paths["data"], 0)
    written = (tmp_path / "own" / "pairs.jsonl").read_bytes()
    assert written == (tmp_path / "again" / "pairs.jsonl").read_bytes()
    given = {p.pair_id: p for p in read_pairs(world / "pairs.jsonl").pairs}
    own = read_pairs(tmp_path / "own" / "pairs.jsonl").pairs
    assert own
    for pair in own:
        (true,) = self_pairs.stated(str(given[pair.pair_id].chosen))
        assert pair.prompt == given[pair.pair_id].prompt
        assert self_pairs.stated(str(pair.chosen)) == {true}
        assert true not in self_pairs.stated(str(pair.rejected))
        assert len(self_pairs.stated(str(pair.rejected))) == 1


def test_the_truth_is_a_hint_before_the_last_message():
    text = PreferencePair("a", 0, "what is it ?", "a red car", "a cat", {})
    assert self_pairs.hinted(text) == (
        "Here are some hints: a red car\nPlease respond based on the given hints.\nwhat is it ?"
    )
    user, answer = {"role": "user", "content": "what ?"}, [{"role": "assistant", "content": "a red car"}]
    chat = PreferencePair("a", 0, [user], answer, answer, {})
    (message,) = self_pairs.hinted(chat)
    assert message["role"] == "user"
    assert message["content"].endswith("a red car\nPlease respond based on the given hints.\nwhat ?")


def test_hinted_pairs_of_a_local_model(lm_folder, pairs_file, tmp_path):
    self_pairs.build_hinted(tmp_path / "own", lm_folder, pairs_file, None, 6, 0)
    rows = [json.loads(line) for line in (tmp_path / "own" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = {p.prompt for p in read_pairs(pairs_file).pairs[:6]}
    assert rows
    assert {row["prompt"] for row in rows} <= asked  # without the hint
    assert all(row["chosen"] != row["rejected"] for row in rows)
