"""Inner product of the last hidden states: a worked value, symmetry, its reduction, missing inputs."""

from dataclasses import replace

import torch

from diagnostics.forward import run
from diagnostics.measures.last_hidden import last_hidden_similarity
from diagnostics.row_stats import pair_stats
from diagnostics.stats import PairStats


def test_worked_value_uses_the_last_vectors_only(hidden_pair):
    """Last vectors (1,-2) and (3,4): 1*3 - 2*4 = -5, whatever came before."""
    pair = hidden_pair([[9.0, 9.0], [1.0, -2.0]], [[3.0, 4.0]])
    other = hidden_pair([[-5.0, 0.0], [0.0, 0.0], [1.0, -2.0]], [[7.0, 7.0], [3.0, 4.0]])
    assert last_hidden_similarity(pair).tolist() == [-5.0]
    assert last_hidden_similarity(other).tolist() == [-5.0]


def test_symmetric_and_the_squared_norm_of_identical_completions(hidden_pair):
    """<(2,3),(2,3)> = 4 + 9 = 13."""
    assert last_hidden_similarity(hidden_pair([[2.0, 3.0]], [[2.0, 3.0]])).item() == 13.0
    there, back = hidden_pair([[1.0, 2.0]], [[0.5, -3.0]]), hidden_pair([[0.5, -3.0]], [[1.0, 2.0]])
    assert last_hidden_similarity(there).item() == last_hidden_similarity(back).item() == -5.5


def test_half_precision_vectors_do_not_overflow(hidden_pair):
    """300 * 400 = 120,000, above the largest float16 (65,504)."""
    pair = hidden_pair([[300.0]], [[400.0]])
    half = PairStats(*(replace(s, last_hidden=s.last_hidden.half()) for s in (pair.chosen, pair.rejected)))
    assert last_hidden_similarity(half).item() == 120_000.0


def test_missing_hidden_states_give_nan(make_side):
    side = make_side([[-1.0, -2.0], [-3.0]])
    measured = replace(side, last_hidden=torch.ones(2, 3))
    for pair in (PairStats(side, side), PairStats(measured, side), PairStats(side, measured)):
        assert last_hidden_similarity(pair).shape == (2,)
        assert last_hidden_similarity(pair).isnan().all()


def test_through_the_forward_pass_it_is_the_state_that_predicts_eos(make_model, make_pairs, make_batch):
    model, pairs = make_model("llama"), make_pairs(3)
    batch = make_batch(pairs)
    with torch.no_grad():
        scores = last_hidden_similarity(pair_stats(batch, run(model, batch)))
        for score, p in zip(scores, pairs, strict=True):
            sides = (torch.tensor([[*p.prompt_ids, *c]]) for c in (p.chosen.completion_ids, p.rejected.completion_ids))
            first, second = (model(ids, output_hidden_states=True).hidden_states[-1][0, -2] for ids in sides)
            expected = sum(a * b for a, b in zip(first.tolist(), second.tolist(), strict=True))
            torch.testing.assert_close(score.item(), expected, rtol=1e-5, atol=1e-5)


def test_gradient_of_the_formula(make_side):
    side = make_side([[-1.0, -2.0], [-3.0]])

    def score(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return last_hidden_similarity(PairStats(replace(side, last_hidden=first), replace(side, last_hidden=second)))

    torch.manual_seed(0)
    states = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(score, states)
