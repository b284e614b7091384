"""SFT: a worked value, its identities, empty completions, gradient."""

import torch

from diagnostics.stats import PairStats
from trainers.objectives.dpo_nll import dpo_nll
from trainers.objectives.sft import sft


def test_worked_value_and_gradient(worked):
    """Mean log-probs -3 / 2 and -6 / 3. Loss 1.5; each of the two chosen tokens gets -1/2."""
    output = sft(worked)
    assert output.losses.tolist() == [1.5]
    assert output.chosen_rewards.tolist() == [-1.5]
    assert output.rejected_rewards.tolist() == [-2.0]
    (chosen,) = torch.autograd.grad(output.losses.sum(), [worked.chosen.per_token_logps])
    assert chosen.tolist() == [[-0.5, -0.5]]


def test_only_the_chosen_answer_counts(worked, make_pair):
    other = make_pair([[-1.0, -2.0]], [[-9.0]])
    assert sft(other).losses.tolist() == sft(worked).losses.tolist()
    assert sft(PairStats(worked.chosen, worked.rejected)).losses.tolist() == sft(worked).losses.tolist()  # no reference


def test_it_is_the_difference_that_the_nll_term_makes_to_dpo(random_pair):
    difference = dpo_nll(random_pair, alpha=1.0).losses - dpo_nll(random_pair, alpha=0.0).losses
    torch.testing.assert_close(sft(random_pair).losses, difference, rtol=0, atol=1e-14)


def test_an_empty_chosen_answer_gives_nan_for_its_pair_alone(make_pair):
    assert sft(make_pair([[], [-1.0]], [[-1.0], [-2.0]])).losses.isnan().tolist() == [True, False]
    assert not sft(make_pair([[-1.0], [-2.0]], [[], [-1.0]])).losses.isnan().any()


def test_gradient_check(random_pair, check_gradient):
    assert check_gradient(sft, random_pair)
