"""DPO with NLL: worked values of the three normalisations, how they relate, gradient."""

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers import objectives
from trainers.objectives import Normalization
from trainers.objectives.dpo import dpo
from trainers.objectives.dpo_nll import dpo_nll

WAYS: list[Normalization] = ["sequence_mean", "sum", "batch_token_mean"]
LOG2 = 0.6931471805599453


@pytest.fixture
def two(make_pair) -> PairStats:
    """Chosen -1 - 2 = -3 (2 tokens) and -4 (1 token); the policy is the reference, so that DPO is log 2."""
    chosen, rejected = [[-1.0, -2.0], [-4.0]], [[-2.0], [-1.0]]
    return make_pair(chosen, rejected, chosen, rejected)


@pytest.mark.parametrize(
    ("way", "nll"),
    [("sequence_mean", [3 / 2, 4.0]), ("sum", [3.0, 4.0]), ("batch_token_mean", [2.0, 8 / 3])],
)
def test_worked_values(two, way, nll):
    """Mean: 3/2 and 4/1. Sum: 3 and 4. Batch: 3 * 2/3 = 2 and 4 * 2/3 = 8/3, as B = 2 pairs have 3 tokens."""
    losses = dpo_nll(two, alpha=0.5, normalization=way).losses
    assert losses.tolist() == pytest.approx([LOG2 + 0.5 * value for value in nll], abs=1e-14)


def test_worked_value_with_a_margin(worked):
    """DPO 0.5543552 at margin 3 and beta 0.1; the chosen mean is -1.5: 0.5543552 + 2 * 1.5."""
    output = dpo_nll(worked, beta=0.1, alpha=2.0)
    assert output.losses.tolist() == pytest.approx([3.554355244468527], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_worked_gradient_adds_to_chosen_tokens_only(worked):
    """DPO gives -0.0425557 a chosen token, the NLL mean of 2 tokens -1/2; rejected tokens keep DPO's 0.0425557."""
    sides = worked.chosen.per_token_logps, worked.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(dpo_nll(worked, beta=0.1).losses.sum(), sides)
    assert chosen.tolist() == [pytest.approx([-0.5425557483188341] * 2, abs=1e-14)]
    assert rejected.tolist() == [pytest.approx([0.0425557483188341] * 3, abs=1e-14)]


def test_mean_over_pairs_of_batch_token_mean_is_the_mean_over_all_chosen_tokens(two, random_pair):
    """(1 + 2 + 4) / 3 = 7/3; and on ragged random pairs, adding up token by token."""
    assert dpo_nll(two, normalization="batch_token_mean").losses.mean().item() == pytest.approx(LOG2 + 7 / 3)
    chosen = random_pair.chosen
    tokens = [
        value
        for row, kept in zip(chosen.per_token_logps.tolist(), chosen.completion_mask.tolist(), strict=True)
        for value, keep in zip(row, kept, strict=True)
        if keep
    ]
    assert len(tokens) == 2 + 5 + 1 + 3
    added = dpo_nll(random_pair, normalization="batch_token_mean").losses.mean() - dpo(random_pair).losses.mean()
    assert added.item() == pytest.approx(-sum(tokens) / len(tokens), rel=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_is_dpo_with_alpha_0(random_pair, way):
    for value, other in zip(
        dpo_nll(random_pair, beta=0.3, alpha=0.0, normalization=way), dpo(random_pair, beta=0.3), strict=True
    ):
        assert value.tolist() == other.tolist()


def test_single_tokens_make_the_three_ways_equal(make_pair):
    pair = make_pair([[-1.0], [-4.0]], [[-2.0], [-0.5]], [[-0.3], [-9.0]], [[-7.0], [-0.1]])
    mean, total, batch = (dpo_nll(pair, normalization=way).losses.tolist() for way in WAYS)
    assert mean == total == pytest.approx(batch, abs=1e-15)


def test_equal_lengths_make_the_means_equal_and_the_sum_n_times_as_large(make_pair):
    pair = make_pair([[-1.0, -3.0], [-4.0, -0.5]], [[-2.0], [-0.5]], [[-0.3, 0.0], [-9.0, 0.0]], [[-7.0], [-0.1]])
    base = dpo(pair).losses
    mean, total, batch = (dpo_nll(pair, normalization=way).losses - base for way in WAYS)
    torch.testing.assert_close(mean, batch, rtol=1e-13, atol=0)
    torch.testing.assert_close(2 * mean, total, rtol=1e-13, atol=0)


def test_an_empty_chosen_answer_gives_nan_for_its_pair_alone(make_pair):
    pair = make_pair([[], [-1.0]], [[-1.0], [-2.0]], [[], [-1.0]], [[-1.0], [-2.0]])
    assert dpo_nll(pair).losses.isnan().tolist() == [True, False]


@pytest.mark.parametrize("way", WAYS)
def test_gradient_check(random_pair, check_gradient, way):
    assert check_gradient(dpo_nll, random_pair, beta=0.5, alpha=0.7, normalization=way)


def test_wrong_hyperparameters_are_refused_by_name(worked):
    with pytest.raises(
        UserError, match="normalization is 'mean'; it must be one of sequence_mean, batch_token_mean, sum"
    ):
        objectives.load("dpo_nll")(worked, normalization="mean")
    with pytest.raises(UserError, match="alpha is -1"):
        dpo_nll(worked, alpha=-1)
    with pytest.raises(UserError, match="beta is 0"):
        dpo_nll(worked, beta=0)
