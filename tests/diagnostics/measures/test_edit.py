"""Edit similarity: worked values, its ends, an oracle by dynamic programming, EOS left out."""

import math
import random
from dataclasses import replace

import pytest
import torch

from diagnostics.forward import run
from diagnostics.measures.edit import edit_similarity
from diagnostics.row_stats import pair_stats
from diagnostics.sequences import pair_of
from diagnostics.stats import PairStats, SequenceStats


def side(texts: list[list[int]], *, left: bool = False) -> SequenceStats:
    """SequenceStats that holds only token ids; places without text hold -1."""
    width = max(1, *(len(text) for text in texts))
    gaps = [[-1] * (width - len(text)) for text in texts]
    rows = [gap + text if left else text + gap for gap, text in zip(gaps, texts, strict=True)]
    ids = torch.tensor(rows)
    return SequenceStats(torch.zeros(ids.shape), (ids >= 0).long(), text_ids=ids)


def slow_distance(first: list[int], second: list[int]) -> int:
    """Levenshtein distance by the textbook recurrence, one cell at a time."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row = row, [i]
        for j, b in enumerate(second, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (a != b)))
    return row[-1]


def test_worked_values():
    """kitten -> sitting: 2 replaced, 1 added = 3 of 7. [5,6] -> [5]: 1 of 2. Nothing shared: -1. Equal: 0."""
    kitten, sitting = [ord(c) for c in "kitten"], [ord(c) for c in "sitting"]
    pair = PairStats(side([kitten, [5, 6], [1, 2], [4, 4]]), side([sitting, [5], [3], [4, 4]]))
    assert edit_similarity(pair).tolist() == pytest.approx([-3 / 7, -0.5, -1.0, 0.0], abs=1e-15)


def test_two_empty_texts_are_identical_and_one_empty_text_shares_nothing():
    result = edit_similarity(PairStats(side([[], []]), side([[], [7, 8]]))).tolist()
    assert result == [0.0, -1.0]
    assert math.copysign(1, result[0]) == 1  # a plain 0, not the -0 that tables would show


def test_equals_the_textbook_recurrence_on_either_padding_side():
    """Few different ids and lengths 0 to 12, so that every kind of edit occurs; ids as large as vocabularies."""
    rng = random.Random(0)
    texts = [[[rng.choice([0, 1, 150_000]) for _ in range(rng.randrange(13))] for _ in range(40)] for _ in range(2)]
    expected = [-slow_distance(a, b) / max(len(a), len(b)) if a or b else 0.0 for a, b in zip(*texts, strict=True)]
    for left in (False, True):
        pair = PairStats(side(texts[0], left=left), side(texts[1]))
        assert edit_similarity(pair).tolist() == pytest.approx(expected, abs=1e-15)


def test_symmetric():
    a, b = side([[1, 2, 3, 4]]), side([[2, 3, 9]])
    assert edit_similarity(PairStats(a, b)).item() == edit_similarity(PairStats(b, a)).item() == -0.5


def test_the_terminating_eos_is_left_out(make_model, make_batch):
    """Through the forward pass: texts (5,6) and (5) with EOS (id 2) differ by 1 of 2; with EOS it would be 1 of 3.

    The second pair was cut short of its EOS on one side, so an id 2 there is text: (2) against () is -1.
    """
    pairs = [
        pair_of("a", 0, (1,), (5, 6, 2), (5, 2)),
        pair_of("b", 1, (1,), (2,), (2,), ends=(False, True)),
    ]
    batch = make_batch(pairs)
    with torch.no_grad():
        stats = pair_stats(batch, run(make_model("llama"), batch))
    assert edit_similarity(stats).tolist() == [-0.5, -1.0]


def test_missing_ids_give_nan():
    known = side([[1, 2], [3]])
    unknown = replace(known, text_ids=None)
    for pair in (PairStats(unknown, unknown), PairStats(known, unknown), PairStats(unknown, known)):
        assert edit_similarity(pair).shape == (2,)
        assert edit_similarity(pair).isnan().all()
