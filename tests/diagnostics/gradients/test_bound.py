"""Token gradients against plain autograd, the two bounds by hand, and that no gradient passes them."""

import pytest
import torch

from diagnostics.flag import rates
from diagnostics.forward import run
from diagnostics.gradients.bound import dpo_bound, norm, phrase_bound, phrase_sizes, token_norms
from diagnostics.row_stats import pair_stats
from diagnostics.sequences import pair_of
from diagnostics.token_likelihood import TokenLikelihood

TOKENS = TokenLikelihood(0)


def test_the_norm_of_a_one_token_answer_is_that_of_its_log_prob(make_model, make_batch):
    model = make_model("llama").double()
    batch = make_batch([pair_of("a", 0, (1, 5, 7), (9,), (4,))])
    weights = rates.weights_of(model)
    sides = rates.gradients(TOKENS, model, batch, weights)
    wanted = [rates.norm(side) for side in sides]
    assert token_norms(model, batch, weights).tolist() == pytest.approx(wanted, rel=1e-9)


def test_no_gradient_of_a_sum_is_longer_than_the_largest_norm_times_its_tokens(make_model, make_batch, make_pairs):
    model = make_model("llama").double()
    weights = rates.weights_of(model)
    for pair in make_pairs(3):
        batch = make_batch([pair])
        norms = token_norms(model, batch, weights)
        tokens = len(pair.chosen.completion_ids) + len(pair.rejected.completion_ids)
        assert len(norms) == tokens
        stats = pair_stats(batch, run(model, batch))
        margin = (stats.chosen.logps - stats.rejected.logps).sum()
        found = float(norm(torch.autograd.grad(margin, list(weights.values()))))
        assert found <= float(norms.sum()) * (1 + 1e-9)
        assert 0.5 * found <= dpo_bound(
            0.5, float(norms.max()), len(pair.chosen.completion_ids), len(pair.rejected.completion_ids)
        )


def test_bounds_by_hand():
    # chosen: phrases of 2 and 1 tokens; rejected: one of 3. N = 2, L = 3
    marks = ((0, 1, 1, 0, 2), (1, 1, 1, 0))
    assert phrase_sizes(marks) == (2, 3)
    assert phrase_bound(0.1, 5.0, marks) == pytest.approx(0.1 * 5 * 2 * 2 * 3)
    assert dpo_bound(0.1, 5.0, 5, 4) == pytest.approx(0.1 * 5 * 9)  # here the smaller one
    assert phrase_sizes(((0, 0), (0,))) == (0, 0)
