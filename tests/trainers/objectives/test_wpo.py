"""WPO: a worked value, its stop-gradient, weights of 1, bases."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.simpo import simpo
from trainers.objectives.wpo import wpo

WEIGHT = 0.36787944117144233


def with_collision(pair: PairStats, chosen: torch.Tensor, rejected: torch.Tensor) -> PairStats:
    return replace(
        pair,
        chosen=replace(pair.chosen, per_token_collision=chosen),
        rejected=replace(pair.rejected, per_token_collision=rejected),
    )


@pytest.fixture
def pair(worked) -> PairStats:
    """log w(chosen) = (-1 + 0.5 - 2 + 1.5) / 2 = -0.5; log w(rejected) = (-2 + 1 - 1 + 1 - 3 + 2.5) / 3 = -0.5."""
    return with_collision(worked, torch.tensor([[-0.5, -1.5]]), torch.tensor([[-1.0, -1.0, -2.5]]))


def test_worked_value(pair):
    """Weight e^-1 = 0.3678794 times log(1 + e^-0.03) at beta 0.01 and margin 3; rewards 0.01 * 1 and 0.01 * -2."""
    output = wpo(pair)
    assert output.losses.tolist() == pytest.approx([0.2495177907016154], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.01], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.02], abs=1e-15)


def test_the_gradient_is_that_of_the_base_times_the_weight_which_has_none(pair):
    sides = pair.chosen.per_token_logps, pair.rejected.per_token_logps
    ours = torch.autograd.grad(wpo(pair, beta=0.5).losses.sum(), sides)
    base = torch.autograd.grad(dpo(pair, beta=0.5).losses.sum(), sides)
    for gradient, other in zip(ours, base, strict=True):
        torch.testing.assert_close(gradient, WEIGHT * other, rtol=1e-13, atol=0)


def test_weights_of_1_leave_the_base(random_pair):
    """Log-probs that are the collision's on every token: the weight is e^0."""
    p = random_pair
    flat = with_collision(p, p.chosen.per_token_logps.detach(), p.rejected.per_token_logps.detach())
    for value, other in zip(wpo(flat, beta=0.3), dpo(p, beta=0.3), strict=True):
        assert value.tolist() == other.tolist()


def test_a_base_without_a_reference_gets_beta_and_needs_no_reference(pair):
    bare = replace(pair, ref_chosen=None, ref_rejected=None)
    expected = WEIGHT * simpo(pair, beta=2.5).losses
    torch.testing.assert_close(wpo(bare, beta=2.5, base="simpo").losses, expected, rtol=1e-13, atol=0)
    with pytest.raises(UserError, match="reference"):
        wpo(bare)


def test_bases_that_cannot_be_weighed_are_refused(pair, monkeypatch):
    with pytest.raises(UserError, match="base is 'wpo', which is wpo itself"):
        wpo(pair, base="wpo")
    with pytest.raises(UserError, match=r"base is 'leanpo', which reads more than log-probs \(whole batch\)"):
        wpo(pair, base="leanpo")
    with pytest.raises(UserError, match=r"base is 'rrpo', which reads more than log-probs \(kl, phrases\)"):
        wpo(pair, base="rrpo")
    with pytest.raises(UserError, match="base is 'ipo_sum', which takes no beta"):
        wpo(pair, base="ipo_sum")
    monkeypatch.setattr("trainers.objectives.dpo.COLUMNS", ("score",), raising=False)
    with pytest.raises(UserError, match=r"base is 'dpo', which reads more than log-probs \(score\)"):
        wpo(pair)
    with pytest.raises(UserError, match="did you mean 'simpo'"):
        wpo(pair, base="simppo")


def test_wrong_hyperparameters_and_missing_parts_are_refused_by_name(pair, worked):
    with pytest.raises(UserError, match="beta is 0"):
        wpo(pair, beta=0)
    with pytest.raises(UserError, match="per_token_collision, which was not measured"):
        wpo(worked)
