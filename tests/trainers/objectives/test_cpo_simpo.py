"""CPO-SimPO: a worked value, SimPO without its likelihood term, refusals."""

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.cpo_simpo import cpo_simpo
from trainers.objectives.simpo import simpo


def test_worked_value(worked):
    """Means -1.5 and -2, ratio 0.54: 10 * (0.5 - 0.54) = -0.4, log(1 + e^0.4) = 0.9130153, plus 0.05 * 1.5."""
    output = cpo_simpo(worked)
    assert output.losses.tolist() == pytest.approx([0.9880152523999526], abs=1e-13)
    assert output.chosen_rewards.tolist() == pytest.approx([-15.0], abs=1e-14)
    assert output.rejected_rewards.tolist() == pytest.approx([-20.0], abs=1e-14)


def test_without_likelihood_it_is_simpo(random_pair):
    ours = cpo_simpo(random_pair, beta=2.0, gamma_beta_ratio=0.3, alpha=0)
    torch.testing.assert_close(ours, simpo(random_pair, beta=2.0, gamma_beta_ratio=0.3), rtol=0, atol=1e-12)


def test_the_likelihood_adds_to_chosen_tokens_only(worked):
    """Mean of two tokens: -alpha / 2 each."""
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    added = cpo_simpo(worked, alpha=0.8).losses - cpo_simpo(worked, alpha=0).losses
    chosen, rejected = torch.autograd.grad(added.sum(), sides)
    assert chosen.tolist() == [pytest.approx([-0.4, -0.4], abs=1e-14)]
    assert rejected.tolist() == [pytest.approx([0.0] * 3, abs=1e-14)]


def test_batch_token_mean_is_the_mean_over_all_chosen_tokens_of_the_batch(make_pair):
    """3 and 4 nats in 3 tokens of 2 pairs: 3 * 2/3 = 2 and 4 * 2/3 = 8/3; each pair's own mean is 1.5 and 4."""
    pair = make_pair([[-1.0, -2.0], [-4.0]], [[-3.0], [-4.0]])
    for normalization, nll in (("batch_token_mean", [2.0, 8 / 3]), ("sequence_mean", [1.5, 4.0])):
        added = cpo_simpo(pair, alpha=1.0, normalization=normalization).losses - cpo_simpo(pair, alpha=0).losses
        assert added.tolist() == pytest.approx(nll, abs=1e-12)


def test_the_reference_is_never_looked_at(worked):
    assert cpo_simpo(PairStats(worked.chosen, worked.rejected)).losses.tolist() == cpo_simpo(worked).losses.tolist()


@pytest.mark.parametrize(
    ("name", "value"), [("beta", 0), ("gamma_beta_ratio", -1), ("alpha", -1), ("normalization", "sum")]
)
def test_wrong_hyperparameters_are_refused_by_name(worked, name, value):
    with pytest.raises(UserError, match=f"{name} is"):
        cpo_simpo(worked, **{name: value})
