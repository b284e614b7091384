"""CPO: a worked value and gradient, DPO at a flat reference, refusals."""

import math

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.cpo import cpo
from trainers.objectives.dpo import dpo


def test_worked_value_and_gradient(worked):
    """Sums -3 and -6: log(1 + e^-0.3) + 1.5 = 2.0543552; a chosen token gets -0.1 / (1 + e^0.3) - 1/2."""
    output = cpo(worked)
    assert output.losses.tolist() == pytest.approx([2.0543552444685274], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.3], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.6], abs=1e-15)
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    slope = 0.1 / (1 + math.exp(0.3))
    assert chosen.tolist() == [pytest.approx([-slope - 0.5] * 2, abs=1e-15)]
    assert rejected.tolist() == [pytest.approx([slope] * 3, abs=1e-15)]


def test_without_likelihood_it_is_dpo_at_a_flat_reference(make_pair):
    pair = make_pair([[-1.0], [-4.0]], [[-2.0], [-0.5]], [[0.0], [0.0]], [[0.0], [0.0]])
    torch.testing.assert_close(cpo(pair, beta=0.3, alpha=0), dpo(pair, beta=0.3), rtol=0, atol=1e-12)


def test_the_likelihood_is_a_mean_over_the_tokens_of_each_pair(make_pair):
    """Token means 1.5 and 4 for chosen of 2 tokens and 1: not the batch's mean 7/3."""
    pair = make_pair([[-1.0, -2.0], [-4.0]], [[-3.0], [-4.0]])
    added = cpo(pair, alpha=2.0).losses - cpo(pair, alpha=0).losses
    assert added.tolist() == pytest.approx([3.0, 8.0], abs=1e-12)


def test_batch_token_mean_is_the_mean_over_all_chosen_tokens_of_the_batch(make_pair):
    """3 and 4 nats in 3 tokens of 2 pairs: 3 * 2/3 = 2 and 4 * 2/3 = 8/3, mean 7/3."""
    pair = make_pair([[-1.0, -2.0], [-4.0]], [[-3.0], [-4.0]])
    added = cpo(pair, alpha=2.0, normalization="batch_token_mean").losses - cpo(pair, alpha=0).losses
    assert added.tolist() == pytest.approx([4.0, 16 / 3], abs=1e-12)


def test_an_empty_chosen_answer_gives_nan_for_its_pair_alone_and_no_reference_is_read(make_pair, worked):
    assert cpo(make_pair([[], [-1.0]], [[-1.0], [-2.0]])).losses.isnan().tolist() == [True, False]
    assert cpo(PairStats(worked.chosen, worked.rejected)).losses.tolist() == cpo(worked).losses.tolist()


@pytest.mark.parametrize(("name", "value"), [("beta", 0), ("alpha", -1), ("normalization", "sum")])
def test_wrong_hyperparameters_are_refused_by_name(worked, name, value):
    with pytest.raises(UserError, match=f"{name} is"):
        cpo(worked, **{name: value})
