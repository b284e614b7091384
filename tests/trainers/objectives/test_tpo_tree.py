"""Tree TPO: a worked value with steps, lists by hand, tokens outside steps, what must be there."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import SequenceStats
from trainers.objectives.tpo_tree import tpo_tree


def by_hand(answers) -> float:
    """beta 0.5. One-token answers of one step: any weight of the step cancels."""
    ordered = sorted(answers, key=lambda answer: -answer[2])
    total = 0.0
    for i, (p, q, s) in enumerate(ordered):
        for j, (other_p, other_q, other) in enumerate(ordered[i + 1 :], start=i + 1):
            weight = abs(2**s - 2**other) * abs(1 / math.log(2 + i) - 1 / math.log(2 + j))
            total += weight * math.log1p(math.exp(-0.5 * (p - q - other_p + other_q)))
    return total


def with_steps(side: SequenceStats, steps: list, similarity: list) -> SequenceStats:
    return replace(side, step_ids=torch.tensor(steps), step_similarity=torch.tensor(similarity, dtype=torch.float64))


@pytest.fixture
def stepped(worked):
    """The worked pair, scores 2 and 1, two steps each."""
    columns = {"chosen_score": torch.tensor([2.0]), "rejected_score": torch.tensor([1.0])}
    chosen = with_steps(worked.chosen, [[1, 2]], [[1.0, 1.0]])
    rejected = with_steps(worked.rejected, [[1, 1, 2]], [[0.5, 0.5, -0.5]])
    return replace(worked, columns=columns, chosen=chosen, rejected=rejected)


def test_worked_value(stepped):
    """Chosen: both steps 0.5 nats a token: r = 0.5 * 0.5. Rejected: step 1 (-1 + 0) / 2, weight 1.5, step 2 -1,
    weight 0.5: (-0.75 - 0.5) / 2 = -0.625. Margin 0.5 * 1.125 = 0.5625.

    Scores 2 and 1: |4 - 2| * |1 / log 2 - 1 / log 3| * L(0.5625) = 2 * 0.5324558 * 0.4509373 = 0.4802084.
    """
    output = tpo_tree(stepped, beta=0.5)
    assert output.losses.tolist() == pytest.approx([0.4802083549057638], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.25], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.3125], abs=1e-15)


def test_lists(check_lists):
    check_lists(partial(tpo_tree, beta=0.5), by_hand)


def test_tokens_outside_steps_and_steps_under_padding_do_not_count(stepped):
    """Rejected tokens 2 and 3 in no step: only the first is left, -1, in step 2 (there is no step 1): r = -0.5.

    Padding holds NaN and step 9.
    """

    def pad(side):
        parts = {
            k: torch.nn.functional.pad(v, (0, 1), value=0 if k == "completion_mask" else 9)
            for k, v in vars(side).items()
            if v is not None
        }
        parts["per_token_logps"] = torch.where(parts["completion_mask"].bool(), parts["per_token_logps"], torch.nan)
        return SequenceStats(**parts)

    pair = replace(stepped, rejected=with_steps(stepped.rejected, [[2, 0, 0]], [[0.5, 0.0, 0.0]]))
    pair = replace(pair, **{k: pad(getattr(pair, k)) for k in ("chosen", "rejected", "ref_chosen", "ref_rejected")})
    output = tpo_tree(pair, beta=0.5)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.5], abs=1e-15)
    (slope,) = torch.autograd.grad(output.losses.sum(), pair.rejected.per_token_logps)
    assert (slope[0] != 0).tolist() == [True, False, False, False]


def test_scores_alone_say_which_answer_is_better(stepped):
    """Exchanged scores: the margin turns to -0.5625. Equal scores: nothing to rank."""
    turned = replace(stepped, columns={"chosen_score": torch.tensor([1.0]), "rejected_score": torch.tensor([2.0])})
    expected = 2 * (1 / math.log(2) - 1 / math.log(3)) * math.log1p(math.exp(0.5625))
    assert tpo_tree(turned, beta=0.5).losses.tolist() == pytest.approx([expected], abs=1e-14)
    equal = replace(stepped, columns={"chosen_score": torch.tensor([2.0]), "rejected_score": torch.tensor([2.0])})
    assert tpo_tree(equal).losses.tolist() == [0.0]


def test_an_answer_without_steps_is_nan(stepped):
    pair = replace(stepped, rejected=with_steps(stepped.rejected, [[0, 0, 0]], [[0.0, 0.0, 0.0]]))
    assert tpo_tree(pair).losses.isnan().all()


def test_an_answer_whose_steps_the_best_one_lacks_has_reward_0(stepped):
    """Similarity -1 makes every weight 0: r = 0, margin 0.25, loss 2 * 0.5324558 * L(0.25); no NaN gradient."""
    pair = replace(stepped, rejected=with_steps(stepped.rejected, [[1, 1, 2]], [[-1.0, -1.0, -1.0]]))
    output = tpo_tree(pair, beta=0.5)
    assert output.rejected_rewards.tolist() == [0.0]
    expected = 2 * (1 / math.log(2) - 1 / math.log(3)) * math.log1p(math.exp(-0.25))
    assert output.losses.tolist() == pytest.approx([expected], abs=1e-14)
    sides = pair.chosen.per_token_logps, pair.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    assert chosen.isfinite().all()
    assert chosen.any()
    assert rejected.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("gone", "name"), [({"step_ids": None}, "step_ids"), ({"step_similarity": None}, "step_similarity")]
)
def test_missing_steps_are_a_sentence(stepped, gone, name):
    with pytest.raises(UserError, match=name):
        tpo_tree(replace(stepped, chosen=replace(stepped.chosen, **gone)))


def test_a_missing_reference_is_a_sentence(stepped):
    with pytest.raises(UserError, match="reference"):
        tpo_tree(replace(stepped, ref_rejected=None))


@pytest.mark.parametrize("name", ["beta"])
def test_wrong_hyperparameters_are_refused_by_name(worked, name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        tpo_tree(worked, **{name: 0})
