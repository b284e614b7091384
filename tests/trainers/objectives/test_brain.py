"""BRAIn: a worked value, its gradient, lists by hand, InfoNCA and DPO where the reference proposed."""

import math
from dataclasses import replace

import pytest
import torch

from trainers.objectives.brain import brain
from trainers.objectives.dpo import dpo
from trainers.objectives.infonca import infonca


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


def test_lists(check_lists):
    check_lists(brain, by_hand)


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
