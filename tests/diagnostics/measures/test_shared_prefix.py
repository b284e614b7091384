"""The shared prefix: worked values, an oracle by counting, EOS left out, the same place as the probe's ledger."""

import random
from dataclasses import replace
from itertools import takewhile

import pytest
import torch

from diagnostics.forward import run
from diagnostics.measures.shared_prefix import shared_prefix
from diagnostics.row_stats import pair_stats
from diagnostics.sequences import pair_of
from diagnostics.stats import PairStats, SequenceStats
from trainers.loop.probe import first_difference


def side(texts: list[list[int]], *, left: bool = False) -> SequenceStats:
    """SequenceStats that holds only token ids; places without text hold -1."""
    width = max(1, *(len(text) for text in texts))
    gaps = [[-1] * (width - len(text)) for text in texts]
    ids = torch.tensor([gap + text if left else text + gap for gap, text in zip(gaps, texts, strict=True)])
    return SequenceStats(torch.zeros(ids.shape), (ids >= 0).long(), text_ids=ids)


def test_worked_values():
    """[5,6,7] and [5,6,8] share two, [5] and [5,6] one, [1,2] and [3,2] none though they end alike, equals all."""
    pair = PairStats(side([[5, 6, 7], [5], [1, 2], [4, 4], []]), side([[5, 6, 8], [5, 6], [3, 2], [4, 4], [1]]))
    assert shared_prefix(pair).tolist() == [2.0, 1.0, 0.0, 2.0, 0.0]


@pytest.mark.parametrize("left", [False, True])
def test_equals_counting_token_by_token_on_either_padding_side(left):
    rng = random.Random(0)
    texts = [[[rng.choice([0, 1, 150_000]) for _ in range(rng.randrange(9))] for _ in range(60)] for _ in range(2)]
    expected = [len(list(takewhile(lambda ab: ab[0] == ab[1], zip(a, b, strict=False)))) for a, b in zip(*texts)]
    assert len(set(expected)) > 3
    assert shared_prefix(PairStats(side(texts[0], left=left), side(texts[1]))).tolist() == expected


def test_through_the_forward_pass_it_is_where_the_probe_looks(make_model, make_batch):
    """(5,6) and (5), each with EOS (id 2), part at place 1, where one says 6 and the other stops. Equal texts, one of
    them cut short of its EOS, share both tokens."""
    pairs = [
        pair_of("a", 0, (1,), (5, 6, 2), (5, 2)),
        pair_of("b", 1, (1,), (7, 8, 2), (7, 8), ends=(True, False)),
        pair_of("c", 2, (1, 3), (9, 2), (4, 9, 2)),
    ]
    batch = make_batch(pairs)
    with torch.no_grad():
        found = shared_prefix(pair_stats(batch, run(make_model("llama"), batch))).tolist()
    assert found == [1.0, 2.0, 0.0]
    assert [first_difference(p) for p in pairs] == [1, None, 0]


def test_missing_ids_give_nan():
    known = side([[1, 2], [3]])
    unknown = replace(known, text_ids=None)
    for pair in (PairStats(unknown, unknown), PairStats(known, unknown), PairStats(unknown, known)):
        assert shared_prefix(pair).shape == (2,)
        assert shared_prefix(pair).isnan().all()
