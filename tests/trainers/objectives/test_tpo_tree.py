"""Tree TPO: a worked value with steps, lists by hand, tokens outside steps, what must be there."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import SequenceStats
from trainers.objectives.tpo_tree import tpo_tree

# list 7: answers 0-3, 1 twice chosen and 3 also rejected; list 3: three answers; list 5: the same answer on both sides
ROWS = [(7, 1, 0), (3, 0, 2), (7, 1, 3), (5, 0, 0), (7, 3, 2), (3, 0, 1)]
# (list, answer): log-prob, reference's log-prob, score
ANSWERS = {
    (7, 0): (-3.0, -2.0, 0.5),
    (7, 1): (-1.0, -2.5, 2.0),
    (7, 2): (-4.0, -3.0, 0.0),
    (7, 3): (-2.0, -2.5, 1.0),
    (3, 0): (-1.0, -0.5, 3.0),
    (3, 1): (-6.0, -4.0, 1.5),
    (3, 2): (-2.0, -4.0, 0.2),
    (5, 0): (-1.0, -1.5, 1.0),
}


@pytest.fixture
def listed(make_pair):
    """Some of the ROWS, in a given order, as a batch of one-token answers with the columns of lists."""

    def make(order):
        sides = [[ANSWERS[ROWS[row][0], ROWS[row][k]] for row in order] for k in (1, 2)]
        pair = make_pair(*([[answer[i]] for answer in side] for i in (0, 1) for side in sides))
        named = dict(zip(("list", "chosen_item", "rejected_item"), zip(*(ROWS[row] for row in order))))
        named |= {f"{k}_score": [a[2] for a in side] for k, side in zip(("chosen", "rejected"), sides)}
        pair = replace(pair, columns={k: torch.tensor(v, dtype=torch.float64) for k, v in named.items()})
        steps = [[1]] * len(sides[0]), [[0.3]] * len(sides[0])
        return replace(pair, chosen=with_steps(pair.chosen, *steps), rejected=with_steps(pair.rejected, *steps))

    return make


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


def test_lists_against_plain_python(listed):
    output = tpo_tree(listed(range(6)), beta=0.5)
    expected = {name: by_hand([a for key, a in ANSWERS.items() if key[0] == name]) for name in (7, 3, 5)}
    assert output.losses.tolist() == pytest.approx([expected[row[0]] for row in ROWS], abs=1e-13)
    assert len(set(expected.values())) == 3


def test_neither_the_order_of_rows_nor_the_other_lists_matter(listed):
    whole = tpo_tree(listed(range(6)), beta=0.5)
    for order in ([5, 4, 3, 2, 1, 0], [4, 2, 0], [1, 5], [3]):
        for value, expected in zip(tpo_tree(listed(order), beta=0.5), whole, strict=True):
            torch.testing.assert_close(value, expected[order], rtol=0, atol=1e-13)


def test_a_list_of_one_answer_is_finite(listed):
    pair = listed([3])
    output = tpo_tree(pair, beta=0.5)
    sides = [pair.chosen.per_token_logps, pair.rejected.per_token_logps]
    gradients = torch.autograd.grad(output.losses.sum(), sides, allow_unused=True)
    assert output.losses.isfinite().all()
    assert all(g is None or g.isfinite().all() for g in gradients)


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
