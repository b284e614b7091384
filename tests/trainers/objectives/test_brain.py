"""BRAIn: a worked value, its gradient, lists by hand, InfoNCA and DPO where the reference proposed."""

import math
from dataclasses import replace

import pytest
import torch

from trainers.objectives.brain import brain
from trainers.objectives.dpo import dpo
from trainers.objectives.infonca import infonca

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
        named |= {f"{k}_proposal_logps": [p - 0.5 * s for p, _, s in v] for k, v in zip(("chosen", "rejected"), sides)}
        return replace(pair, columns={k: torch.tensor(v, dtype=torch.float64) for k, v in named.items()})

    return make


def by_hand(answers) -> float:
    """The proposal's log-prob is the policy's - 0.5 * score, as in listed()."""
    a = [math.exp(q - (p - 0.5 * s)) / (1 + math.exp(-s)) for p, q, s in answers]
    b = [math.exp(0.5 * s) for *_, s in answers]
    return -sum(x / sum(a) * math.log(y / sum(b)) for x, y in zip(a, b, strict=True))


def sampled(pair, scores: tuple, proposals: tuple):
    names = ("chosen_score", "rejected_score", "chosen_proposal_logps", "rejected_proposal_logps")
    values = (
        torch.as_tensor(value, dtype=torch.float64).expand(len(pair.chosen.lengths)) for value in scores + proposals
    )
    return replace(pair, columns=dict(zip(names, values, strict=True)))


def test_worked_value_and_gradient(worked):
    """Scores 1 and -1, proposals -3.5 and -5. log p(good) = -0.3132617 and -1.3132617.

    a: (-4 - 0.3132617 + 3.5) - (-4 - 1.3132617 + 5) = -0.5, so a_chosen = sigmoid(-0.5) = 0.3775407.
    b: (-3 + 3.5) - (-6 + 5) = 1.5: L(1.5) + 1.5 a_rejected = 0.2014133 + 0.9336890 = 1.1351023.
    Slope in the chosen log-prob b - a = sigmoid(1.5) - 0.3775407, in the rejected one its opposite.
    """
    pair = sampled(worked, (1.0, -1.0), (-3.5, -5.0))
    output = brain(pair)
    assert output.losses.tolist() == pytest.approx([1.1351022747855344], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([1.0], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-2.0], abs=1e-15)
    sides = pair.chosen.per_token_logps, pair.rejected.per_token_logps
    chosen, rejected = torch.autograd.grad(output.losses.sum(), sides)
    slope = 1 / (1 + math.exp(-1.5)) - 0.3775406687981454
    assert chosen.tolist() == [pytest.approx([slope] * 2, abs=1e-14)]
    assert rejected.tolist() == [pytest.approx([-slope] * 3, abs=1e-14)]


def test_lists_against_plain_python(listed):
    output = brain(listed(range(6)))
    expected = {name: by_hand([a for key, a in ANSWERS.items() if key[0] == name]) for name in (7, 3, 5)}
    assert output.losses.tolist() == pytest.approx([expected[row[0]] for row in ROWS], abs=1e-13)
    assert len(set(expected.values())) == 3


def test_neither_the_order_of_rows_nor_the_other_lists_matter(listed):
    whole = brain(listed(range(6)))
    for order in ([5, 4, 3, 2, 1, 0], [4, 2, 0], [1, 5], [3]):
        for value, expected in zip(brain(listed(order)), whole, strict=True):
            torch.testing.assert_close(value, expected[order], rtol=0, atol=1e-13)


def test_a_list_of_one_answer_is_finite(listed):
    pair = listed([3])
    output = brain(pair)
    sides = [pair.chosen.per_token_logps, pair.rejected.per_token_logps]
    gradients = torch.autograd.grad(output.losses.sum(), sides, allow_unused=True)
    assert output.losses.isfinite().all()
    assert all(g is None or g.isfinite().all() for g in gradients)


def test_with_the_reference_as_proposal_it_is_infonca_of_log_sigmoid_scores(random_pair):
    p = random_pair
    scores = torch.tensor([1.0, -2.0, 0.3, 5.0]), torch.tensor([0.5, 1.0, -3.0, -5.0])
    pair = sampled(p, scores, (p.ref_chosen.logps.detach(), p.ref_rejected.logps.detach()))
    logs = [torch.nn.functional.logsigmoid(score.double()) for score in scores]
    other = replace(p, columns={"chosen_score": logs[0], "rejected_score": logs[1]})
    for value, expected in zip(brain(pair), infonca(other, beta=1.0, temperature_alpha=1.0), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    sure = sampled(p, (0.0, -50.0), (p.ref_chosen.logps.detach(), p.ref_rejected.logps.detach()))
    torch.testing.assert_close(brain(sure).losses, dpo(p, beta=1.0).losses, rtol=0, atol=1e-12)


def test_a_common_factor_of_the_proposal_cancels(worked):
    one, other = (brain(sampled(worked, (1.0, -1.0), (-3.5 + c, -5.0 + c))).losses.item() for c in (0.0, 700.0))
    assert one == pytest.approx(other, abs=1e-12)
