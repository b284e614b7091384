"""Token ids: a sequence like the tuple of the same numbers, in four bytes each."""

import sys

import numpy as np
import torch

from diagnostics.token_ids import TokenIds


def test_is_the_tuple_of_its_numbers():
    ids = TokenIds([5, 70000, 2])
    assert ids == (5, 70000, 2) == ids
    assert ids == TokenIds(iter([5, 70000, 2]))
    assert ids != (5, 70000)
    assert ids != TokenIds([5, 70000, 3])
    assert {ids: "found"}[5, 70000, 2] == "found"
    assert repr(ids) == "(5, 70000, 2)"  # hashes of stored reference log-probs are made of it
    assert [*ids[1:], ids[-1], len(ids), ids.count(2)] == [70000, 2, 2, 3, 1]
    assert isinstance(ids[1:], TokenIds)
    assert torch.tensor(ids[:2]).tolist() == [5, 70000]
    assert not TokenIds([])


def test_an_id_takes_four_bytes():
    ids = TokenIds(range(100_000))
    assert np.asarray(ids).nbytes == 400_000
    assert sys.getsizeof(ids) < 100
