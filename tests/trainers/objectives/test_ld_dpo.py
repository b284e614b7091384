"""LD-DPO: worked values, where it is DPO, which tokens are beyond the shorter answer."""

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats, SequenceStats
from trainers.objectives.dpo import dpo
from trainers.objectives.ld_dpo import ld_dpo


@pytest.mark.parametrize(
    ("alpha", "loss", "reward"), [(0.5, 0.5759394198788437, -0.15), (0.0, 0.5981388693815918, -0.1)]
)
def test_worked_values(worked, alpha, loss, reward):
    """Lengths 2 and 3: the third rejected token (log-ratio -1) counts alpha; v' = -1 + 0 - alpha.

    alpha 0.5: margin 1 + 1.5, log(1 + e^-0.25). alpha 0: margin 1 + 1, log(1 + e^-0.2).
    """
    output = ld_dpo(worked, beta=0.1, alpha=alpha)
    assert output.losses.tolist() == pytest.approx([loss], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([reward], abs=1e-15)


def test_the_gradient_of_a_token_beyond_is_alpha_times_that_of_the_others(worked):
    gradient = torch.autograd.grad(ld_dpo(worked, alpha=0.3).losses.sum(), worked.rejected.per_token_logps)[0][0]
    assert gradient[0] == gradient[1] > 0
    assert gradient[2].item() == pytest.approx(0.3 * gradient[0].item(), rel=1e-14)


def test_alpha_1_is_dpo(random_pair):
    for value, other in zip(ld_dpo(random_pair, beta=0.3, alpha=1), dpo(random_pair, beta=0.3), strict=True):
        assert value.tolist() == other.tolist()


def test_equal_lengths_are_dpo_whatever_alpha(make_pair):
    pair = make_pair([[-1.0, -2.0]], [[-3.0, -1.0]], [[-0.5, -0.5]], [[-1.0, -2.5]])
    assert ld_dpo(pair, alpha=0).losses.tolist() == dpo(pair).losses.tolist()


def test_alpha_0_is_dpo_of_both_answers_cut_to_the_shorter_one(make_pair):
    pair = make_pair([[-1.0, -2.0, -4.0]], [[-3.0]], [[-0.5, -0.5, -9.0]], [[-1.0]])
    cut = make_pair([[-1.0]], [[-3.0]], [[-0.5]], [[-1.0]])
    assert ld_dpo(pair, alpha=0).losses.tolist() == dpo(cut).losses.tolist()


def test_tokens_are_counted_from_the_first_completion_token_not_from_the_edge(worked):
    """Left padding of 4."""

    def shift(side: SequenceStats | None) -> SequenceStats:
        assert side is not None
        logps = torch.nn.functional.pad(side.per_token_logps, (4, 0), value=torch.nan)
        return SequenceStats(logps, torch.nn.functional.pad(side.completion_mask, (4, 0)))

    sides = (worked.chosen, worked.rejected, worked.ref_chosen, worked.ref_rejected)
    assert ld_dpo(PairStats(*map(shift, sides))).losses.tolist() == ld_dpo(worked).losses.tolist()


def test_wrong_hyperparameters_are_refused_by_name(worked):
    for alpha in (-0.1, 1.1):
        with pytest.raises(UserError, match=r"alpha is .* from 0 to 1"):
            ld_dpo(worked, alpha=alpha)
    with pytest.raises(UserError, match="beta is 0"):
        ld_dpo(worked, beta=0)
    with pytest.raises(UserError, match="reference"):
        ld_dpo(PairStats(worked.chosen, worked.rejected))
