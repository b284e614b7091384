"""Pairs in a file that processes share: what comes back is what went in, and the ids are not copied."""

import numpy as np

from diagnostics.pair_file import BATCH, read_pairs_file, write_pairs
from diagnostics.sequences import Example, Sequence, pair_of


def pair(i: int) -> Example:
    doubts = ("token_merge", "eos_one_side") if i % 3 == 0 else ()
    return pair_of(f"zoë/{i}", 2 * i, range(i % 5 + 1), [70_000 + i, 2], (i,), (i % 2 == 0, False), doubts)


def test_pairs_come_back_as_they_were(tmp_path):
    pairs = [pair(i) for i in range(2 * BATCH + 3)]
    write_pairs(tmp_path / "pairs.arrow", pairs)
    assert read_pairs_file(tmp_path / "pairs.arrow") == pairs


def test_examples_of_other_rows_come_back_too(tmp_path):
    prompt = (1, 2)
    rows = {
        "own": Sequence(prompt, (3,)),
        "other": Sequence((4,), (5, 6), has_eos=False),
        "third": Sequence((4,), (7,)),
    }
    examples = [Example("a", 0, {"answer": rows["own"]}, ("clock",)), Example("b", 1, rows)]
    write_pairs(tmp_path / "rows.arrow", examples)
    assert read_pairs_file(tmp_path / "rows.arrow") == examples


def test_no_pairs_are_no_pairs(tmp_path):
    write_pairs(tmp_path / "pairs.arrow", [])
    assert read_pairs_file(tmp_path / "pairs.arrow") == []


def test_ids_stay_in_the_file_even_when_its_name_is_gone(tmp_path):
    write_pairs(tmp_path / "pairs.arrow", [pair(7), pair(8)])
    found = read_pairs_file(tmp_path / "pairs.arrow")
    (tmp_path / "pairs.arrow").unlink()
    assert not np.asarray(found[0].chosen.completion_ids._values).flags.owndata
    assert found == [pair(7), pair(8)]
