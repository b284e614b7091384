"""Top-k entropy and mass: worked values, a token-by-token oracle, padding, order and batching."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics import forward, measures
from diagnostics.forward import run
from diagnostics.logits import top_tokens
from diagnostics.prepare import prepare
from diagnostics.row_stats import pair_stats, with_top_tokens
from diagnostics.stats import PairStats

COLUMNS = ["chosen_topk_entropy", "chosen_topk_mass", "rejected_topk_entropy", "rejected_topk_mass"]


class Said:
    """Outputs with these logits, in tiles of two rows."""

    def __init__(self, probs: list[list[float]]) -> None:
        self.table = torch.tensor(probs).log()

    def tiles(self) -> list[slice]:
        return [slice(i, i + 2) for i in range(0, len(self.table), 2)]

    def logits(self, tile: slice) -> torch.Tensor:
        return self.table[tile] + 7.0  # a constant changes nothing


def test_worked_values():
    """p = (1/2, 1/4, 1/8, 1/8), k = 2: M = 3/4; H = 1/2 log 2 + 1/4 log 4 = log 2, of probabilities left as they are.
    k = 10 of 4: M = 1, H = 1/2 log 2 + 1/4 log 4 + 2/8 log 8 = 7/4 log 2. One sure token: H = 0, M = 1."""
    said = Said([[0.5, 0.25, 0.125, 0.125], [0.125, 0.5, 0.125, 0.25], [0.0, 0.0, 1.0, 0.0]])
    entropy, mass = top_tokens(said, 2)
    assert entropy.tolist() == pytest.approx([math.log(2), math.log(2), 0.0])
    assert mass.tolist() == pytest.approx([0.75, 0.75, 1.0])
    entropy, mass = top_tokens(said)
    assert entropy.tolist() == pytest.approx([1.75 * math.log(2), 1.75 * math.log(2), 0.0])
    assert mass.tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_worked_means_ignore_what_padding_holds(make_side):
    """Chosen entropies 1 and 3 (mean 2) and 5; masses .5 and 1 (mean .75) and .25; rejected has one token each."""
    nan = math.nan
    chosen = replace(
        make_side([[0.0] * 2, [0.0]]),
        per_token_top_entropy=torch.tensor([[1.0, 3.0], [5.0, nan]]),
        per_token_top_mass=torch.tensor([[0.5, 1.0], [0.25, math.inf]]),
    )
    rejected = replace(
        make_side([[0.0], [0.0]]),
        per_token_top_entropy=torch.tensor([[4.0], [6.0]]),
        per_token_top_mass=torch.tensor([[0.125], [1.0]]),
    )
    values = [measures.load(name)(PairStats(chosen, rejected)).tolist() for name in COLUMNS]
    assert values == [[2.0, 5.0], [0.75, 0.25], [4.0, 6.0], [0.125, 1.0]]


@pytest.mark.parametrize("name", COLUMNS)
def test_nan_where_it_was_not_measured(make_side, name):
    side = make_side([[-1.0, -2.0], [-3.0]])
    assert measures.load(name)(PairStats(side, side)).isnan().tolist() == [True, True]


def oracle(model, prompt, completion) -> tuple[float, float]:
    """One sequence alone and unpadded, sorted in plain Python."""
    with torch.no_grad():
        probs = model(torch.tensor([[*prompt, *completion]])).logits[0].double().softmax(-1).tolist()
    rows = [sorted(row, reverse=True)[:10] for row in probs[len(prompt) - 1 : -1]]
    entropy = sum(-sum(p * math.log(p) for p in row) for row in rows) / len(completion)
    return entropy, sum(map(sum, rows)) / len(completion)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("packed", [False, True])
def test_equals_the_oracle_in_any_order_and_tiles(name, packed, make_model, make_pairs, make_batch, monkeypatch):
    monkeypatch.setattr(forward, "TILE_BYTES", 4 * 61 * 16)  # sixteen rows a tile
    model, pairs = make_model(name), make_pairs(5)
    expected = {}
    for p in pairs:
        sides = (oracle(model, p.prompt_ids, ids) for ids in (p.chosen.completion_ids, p.rejected.completion_ids))
        expected[p.pair_id] = [value for side in sides for value in side]
    if packed:
        prepare(model)
    for group, side in ((pairs, "right"), (pairs[::-1], "left"), (pairs[2:3], "right")):
        batch = make_batch(group, side)
        with torch.no_grad():
            out = run(model, batch)
            stats = with_top_tokens(batch, out, pair_stats(batch, out))
        values = torch.stack([measures.load(column)(stats) for column in COLUMNS], 1)
        for pair, row in zip(group, values.tolist(), strict=True):
            assert row == pytest.approx(expected[pair.pair_id], abs=1e-4)
            assert 0 < row[1] < 1
