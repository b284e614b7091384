"""CHES: a worked value, its known zeros, a token-by-token oracle, and equality through the real forward pass."""

from dataclasses import replace

import pytest
import torch

from diagnostics.forward import run
from diagnostics.measures.ches import ches_score
from diagnostics.row_stats import pair_stats
from diagnostics.stats import PairStats

Rows = list[list[float]]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_ches(chosen: Rows, rejected: Rows) -> float:
    """Definition 2 of the paper, one inner product for every two tokens."""
    across = sum(dot(h, g) for h in chosen for g in rejected)
    within = sum(dot(h, g) for h in chosen for g in chosen)
    return across - within


def test_worked_value_and_no_symmetry(hidden_pair):
    """S+ = (1,0)+(1,1) = (2,1); S- = (0,1)+(2,0)+(1,1) = (3,2).

    <S+,S-> = 2*3 + 1*2 = 8 and <S+,S+> = 4 + 1 = 5, so CHES = 3.
    With the sides exchanged <S-,S-> = 9 + 4 = 13, so CHES = 8 - 13 = -5.
    """
    chosen, rejected = [[1.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]
    assert ches_score(hidden_pair(chosen, rejected)).tolist() == [3.0]
    assert ches_score(hidden_pair(rejected, chosen)).tolist() == [-5.0]


def test_zero_for_single_tokens_and_for_identical_completions(hidden_pair):
    """One token on each side is predicted from the same vector (the last prompt token), so S+ = S-."""
    assert ches_score(hidden_pair([[0.3, -7.0]], [[0.3, -7.0]])).item() == 0.0
    same = [[0.3, -7.0], [1.5, 2.0], [4.0, 0.1]]
    assert ches_score(hidden_pair(same, same)).item() == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_token_by_token_oracle(hidden_pair, seed):
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = (torch.randn(n, 6, generator=generator).double().tolist() for n in (4 + seed, 9 - seed))
    expected = slow_ches(chosen, rejected)
    assert ches_score(hidden_pair(chosen, rejected)).item() == pytest.approx(expected, rel=1e-12)


def test_keeps_the_digits_that_two_large_products_would_lose(hidden_pair):
    """S+ = (1e8, 1), S- = (1e8, 2): CHES = 1*(2-1) = 1, while 1e16 + 2 - (1e16 + 1) is 2 in float64."""
    assert ches_score(hidden_pair([[1e8, 1.0]], [[1e8, 2.0]])).item() == 1.0


def test_products_of_float16_sums_do_not_overflow(hidden_pair):
    """CHES = 300 * (600 - 300) = 90,000, above the largest float16 (65,504)."""
    pair = hidden_pair([[300.0]], [[600.0]])
    half = PairStats(*(replace(s, hidden_sum=s.hidden_sum.half()) for s in (pair.chosen, pair.rejected)))
    assert ches_score(half).item() == 90_000.0


def test_missing_hidden_states_give_nan_for_every_pair(make_side):
    side = make_side([[-1.0, -2.0], [-3.0]])
    measured = replace(side, hidden_sum=torch.ones(2, 3))
    for pair in (PairStats(side, side), PairStats(measured, side), PairStats(side, measured)):
        assert ches_score(pair).shape == (2,)
        assert ches_score(pair).isnan().all()


def test_gradient_of_the_formula(make_side):
    side = make_side([[-1.0, -2.0], [-3.0]])

    def score(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return ches_score(PairStats(replace(side, hidden_sum=chosen), replace(side, hidden_sum=rejected)))

    torch.manual_seed(0)
    sums = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(score, sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_right_left_and_single_row_batches_agree_with_the_definition(make_model, make_pairs, make_batch, dtype):
    """Through the real forward pass. The oracle reads every layer's output of a pair of unpadded rows."""
    model, pairs = make_model("llama").to(dtype), make_pairs(4)
    with torch.no_grad():
        right, left = (ches_score(pair_stats(b, run(model, b))) for b in (make_batch(pairs), make_batch(pairs, "left")))
        single = torch.cat([ches_score(pair_stats(b, run(model, b))) for b in (make_batch([p]) for p in pairs)])
        expected = torch.tensor(
            [
                slow_ches(
                    *(states(model, p.prompt_ids, c) for c in (p.chosen.completion_ids, p.rejected.completion_ids))
                )
                for p in pairs
            ]
        ).double()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.01}[dtype] * expected.abs().max()
    for scores in (right, left, single):
        assert scores.isfinite().all()
        assert ((scores - expected).abs() < tolerance).all()


def states(model, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Rows:
    """Final hidden states at the positions that predict the completion, last prompt token first."""
    ids = torch.tensor([[*prompt, *completion]])
    hidden = model(ids, output_hidden_states=True).hidden_states[-1][0].double()
    return hidden[len(prompt) - 1 : -1].tolist()
