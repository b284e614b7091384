"""LN-CHES: a worked value, reductions to CHES, a token-by-token oracle."""

from dataclasses import replace

import pytest
import torch

from diagnostics.measures.ches import ches_score
from diagnostics.measures.ln_ches import ln_ches_score
from diagnostics.stats import PairStats

Rows = list[list[float]]


def slow_ln_ches(chosen: Rows, rejected: Rows) -> float:
    """Definition 3 of the paper: each inner product of two tokens, divided by how many there are."""

    def mean_product(first: Rows, second: Rows) -> float:
        products = [sum(x * y for x, y in zip(h, g, strict=True)) for h in first for g in second]
        return sum(products) / len(products)

    return mean_product(chosen, rejected) - mean_product(chosen, chosen)


def test_worked_value(hidden_pair):
    """S+ = (2,1) of 2 tokens, m+ = (1, 1/2); S- = (3,2) of 3 tokens, m- = (1, 2/3).

    <m+,m-> = 1 + 1/3 = 4/3 and <m+,m+> = 1 + 1/4 = 5/4, so LN-CHES = 16/12 - 15/12 = 1/12.
    Exchanged: 4/3 - (1 + 4/9) = 12/9 - 13/9 = -1/9.
    """
    chosen, rejected = [[1.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]
    assert ln_ches_score(hidden_pair(chosen, rejected)).item() == pytest.approx(1 / 12, abs=1e-15)
    assert ln_ches_score(hidden_pair(rejected, chosen)).item() == pytest.approx(-1 / 9, abs=1e-15)


def test_zero_for_single_tokens_and_for_identical_completions(hidden_pair):
    assert ln_ches_score(hidden_pair([[0.3, -7.0]], [[0.3, -7.0]])).item() == 0.0
    same = [[0.3, -7.0], [1.5, 2.0], [4.0, 0.1]]
    assert ln_ches_score(hidden_pair(same, same)).item() == 0.0


def test_with_equal_lengths_it_is_ches_over_the_length_squared(hidden_pair):
    torch.manual_seed(1)
    pair = hidden_pair(torch.randn(5, 4).tolist(), torch.randn(5, 4).tolist())
    assert ln_ches_score(pair).item() == pytest.approx(ches_score(pair).item() / 25, rel=1e-12)


def test_repeating_every_token_changes_nothing(hidden_pair):
    """Means stay the same when each vector counts three times; the raw score would grow ninefold."""
    torch.manual_seed(2)
    chosen, rejected = torch.randn(3, 4).tolist(), torch.randn(4, 4).tolist()
    once, thrice = hidden_pair(chosen, rejected), hidden_pair(chosen * 3, rejected * 3)
    assert ln_ches_score(thrice).item() == pytest.approx(ln_ches_score(once).item(), rel=1e-12)
    assert ches_score(thrice).item() == pytest.approx(9 * ches_score(once).item(), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_token_by_token_oracle(hidden_pair, seed):
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = (torch.randn(n, 6, generator=generator).double().tolist() for n in (4 + seed, 9 - seed))
    expected = slow_ln_ches(chosen, rejected)
    assert ln_ches_score(hidden_pair(chosen, rejected)).item() == pytest.approx(expected, rel=1e-12)


def test_missing_hidden_states_and_empty_completions_give_nan(make_side):
    """The second pair's chosen side has no token: 0 / 0."""
    bare = make_side([[-1.0, -2.0], []])
    assert ln_ches_score(PairStats(bare, bare)).isnan().tolist() == [True, True]
    empty = replace(bare, hidden_sum=torch.tensor([[2.0, 4.0], [0.0, 0.0]]))
    full = replace(make_side([[-1.0], [-1.0]]), hidden_sum=torch.tensor([[1.0, 3.0], [1.0, 1.0]]))
    for pair in (PairStats(empty, full), PairStats(full, empty)):
        assert ln_ches_score(pair).isnan().tolist() == [False, True]


def test_gradient_of_the_formula(make_side):
    chosen, rejected = make_side([[-1.0, -2.0], [-3.0]]), make_side([[-1.0] * 3, [-2.0]])

    def score(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return ln_ches_score(PairStats(replace(chosen, hidden_sum=first), replace(rejected, hidden_sum=second)))

    torch.manual_seed(0)
    sums = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(score, sums)
