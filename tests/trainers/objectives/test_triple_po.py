"""Triple-PO and TPO-L: worked values, gradients on the gold answer, SimPO and no reference, a missing gold answer."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers import objectives
from trainers.objectives.simpo import simpo
from trainers.objectives.triple_po import triple_po


@pytest.fixture
def triple(worked, make_pair) -> PairStats:
    """The worked pair without a reference and with a gold answer of -1 - 0.5 - 2.5 - 1 = -5, mean -1.25."""
    gold = make_pair([[-1.0, -0.5, -2.5, -1.0]], [[-1.0]]).chosen
    return PairStats(worked.chosen, worked.rejected, extra={"gold": gold})


def test_worked_value_of_sums(triple):
    """0.01 * (-3 + 6) = 0.03: log(1 + e^-0.03) = 0.6782597, plus 1.25. gamma has no part."""
    for gamma in (0.5, 7.0):
        output = triple_po(triple, gamma=gamma)
        assert output.losses.tolist() == pytest.approx([1.9282596763414483], abs=1e-14)
        assert output.chosen_rewards.tolist() == pytest.approx([-0.03], abs=1e-15)
        assert output.rejected_rewards.tolist() == pytest.approx([-0.06], abs=1e-15)


def test_worked_values_of_means(triple):
    """0.01 * (-1.5 + 2) - 0.5 = -0.495: log(1 + e^0.495) + 1.25. And 2 * 0.5 - 0.75 = 0.25 with half the NLL."""
    output = triple_po(triple, length_normalized=True)
    assert output.losses.tolist() == pytest.approx([2.220967626267088], abs=1e-13)
    assert output.chosen_rewards.tolist() == pytest.approx([-0.015], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.02], abs=1e-15)
    other = triple_po(triple, beta=2.0, gamma=0.75, alpha=0.5, length_normalized=True)
    assert other.losses.tolist() == pytest.approx([1.2009394198788437], abs=1e-14)


def test_the_gold_answer_gets_minus_alpha_over_its_length(triple):
    gold = triple.extra["gold"].per_token_logps
    for normalized in (False, True):
        losses = triple_po(triple, alpha=0.8, length_normalized=normalized).losses
        (gradient,) = torch.autograd.grad(losses.sum(), gold)
        assert gradient.tolist() == [pytest.approx([-0.2] * 4, abs=1e-15)]


def test_batch_token_mean_is_the_mean_over_all_gold_tokens_of_the_batch(make_pair):
    """3 and 4 nats in 3 tokens of 2 gold answers: 3 * 2/3 = 2 and 4 * 2/3 = 8/3; each one's own mean is 1.5 and 4."""
    gold = make_pair([[-1.0, -2.0], [-4.0]], [[-1.0]]).chosen
    pair = replace(make_pair([[-1.0] * 3, [-2.0]], [[-3.0], [-4.0]]), extra={"gold": gold})
    for normalized in (False, True):
        plain = triple_po(pair, alpha=0, length_normalized=normalized).losses
        for way, nll in (("batch_token_mean", [2.0, 8 / 3]), ("sequence_mean", [1.5, 4.0])):
            losses = triple_po(pair, alpha=0.5, length_normalized=normalized, normalization=way).losses
            assert (losses - plain).tolist() == pytest.approx([value / 2 for value in nll], abs=1e-13)


def test_means_without_the_gold_answer_are_simpo(random_pair):
    pair = replace(random_pair, extra={"gold": random_pair.chosen})
    normalized = triple_po(pair, beta=2.0, gamma=1.0, alpha=0, length_normalized=True)
    for value, other in zip(normalized, simpo(pair, beta=2.0, gamma_beta_ratio=0.5), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=0)


def test_a_missing_gold_answer_is_named(worked):
    with pytest.raises(UserError, match="'gold'"):
        triple_po(worked)


def test_gradient_check_of_means(triple):
    gold = triple.extra

    def losses(chosen, rejected):
        sides = replace(triple.chosen, per_token_logps=chosen), replace(triple.rejected, per_token_logps=rejected)
        return triple_po(PairStats(*sides, extra=gold), beta=2.0, length_normalized=True).losses

    leaves = [s.per_token_logps.detach().requires_grad_() for s in (triple.chosen, triple.rejected)]
    assert torch.autograd.gradcheck(losses, leaves)


def test_wrong_hyperparameters_are_refused_by_name(triple):
    for wrong in ({"beta": 0}, {"alpha": -1}, {"gamma": -1}, {"length_normalized": "false"}, {"normalization": "sum"}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is "):
            objectives.load("triple_po")(triple, **wrong)
