"""RankDPO: two samples, lists by hand under both readings of the rank, judges, what wrong orders cost."""

import math
from dataclasses import replace
from functools import partial
from itertools import permutations

import pytest
import torch

from diagnostics.errors import UserError
from trainers.objectives.diffusion_dpo import diffusion_dpo
from trainers.objectives.rankdpo import rankdpo

TWO = 1 / math.log(2) - 1 / math.log(3)  # |2^1 - 2^0| times this: 0.5325


def by_hand(answers, *, ranks: str, beta: float = 0.5) -> float:
    """answers: (log-prob, reference's, score); s = reference - log-prob, the lowest first."""
    s = [q - p for p, q, _ in answers]
    scores = [score for *_, score in answers]
    phi = [sum(a > b for b in scores) / max(len(answers) - 1, 1) for a in scores]
    key = s if ranks == "predicted" else [-x for x in phi]
    rank = [1 + sorted(range(len(key)), key=lambda i: key[i]).index(i) for i in range(len(key))]
    return sum(
        abs(2 ** phi[i] - 2 ** phi[j])
        * abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
        * math.log1p(math.exp(beta * (s[i] - s[j])))
        for i, j in permutations(range(len(answers)), 2)
        if phi[i] > phi[j]
    )


@pytest.mark.parametrize("ranks", ["predicted", "labels"])
def test_two_samples_are_diffusion_dpo_times_0_5325(many_denoised, ranks):
    scores = {"chosen_score": torch.ones(4), "rejected_score": torch.zeros(4)}
    output = rankdpo(replace(many_denoised, columns=scores), beta=250.0, ranks=ranks)
    plain = diffusion_dpo(many_denoised, beta=500.0)
    assert pytest.approx(0.5325, abs=5e-5) == TWO
    torch.testing.assert_close(output.losses, TWO * plain.losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(output.chosen_rewards, plain.chosen_rewards)


@pytest.mark.parametrize("ranks", ["predicted", "labels"])
def test_lists(check_lists, ranks):
    check_lists(partial(rankdpo, beta=0.5, ranks=ranks), partial(by_hand, ranks=ranks))


def test_log_2_times_the_weights_at_the_reference(at_reference):
    """One pair a list, chosen above: 0.5325 log 2."""
    columns = {"chosen_score": torch.full((4,), 2.0), "rejected_score": torch.zeros(4)}
    assert rankdpo(replace(at_reference, columns=columns)).losses.tolist() == pytest.approx([TWO * math.log(2)] * 4)


def four(make_denoised, errors, scores, **options):
    """A list of four samples as two rows; the reference's errors are 1."""
    residuals = [[[error**0.5]] for error in errors]
    one = [[[1.0]]] * 2
    columns = {"list": [0, 0], "chosen_item": [0, 2], "rejected_item": [1, 3]}
    columns |= {"chosen_score": scores[::2], "rejected_score": scores[1::2]}
    return rankdpo(make_denoised(residuals[::2], residuals[1::2], one, one, **columns), beta=50.0, **options)


@pytest.mark.parametrize("ranks", ["predicted", "labels"])
def test_a_wrong_order_of_first_and_last_costs_more_than_of_the_middle(make_denoised, ranks):
    errors = [0.7, 0.8, 0.9, 1.0], [0.7, 0.9, 0.8, 1.0], [1.0, 0.8, 0.9, 0.7]
    right, middle, ends = (four(make_denoised, e, [4.0, 3.0, 2.0, 1.0], ranks=ranks).losses[0] for e in errors)
    assert right < middle < ends


def test_shares_of_wins_over_several_judges(make_denoised):
    """Two judges and four samples: wins (3 + 1, 2 + 3, 1 + 0, 0 + 1) / 6; the judges tie at two of them, no win."""
    errors, judged = [0.9, 0.8, 1.1, 1.0], [[9.0, 0.5], [7.0, 0.9], [5.0, 0.1], [3.0, 0.5]]
    found = four(make_denoised, errors, judged).losses
    shares = [4 / 6, 5 / 6, 1 / 6, 1 / 6]
    given = four(make_denoised, errors, shares, gains="score").losses
    assert found.tolist() == pytest.approx(given.tolist(), rel=1e-12)


def test_wrong_words_are_refused(denoised):
    with pytest.raises(UserError, match="ranks is 'best'"):
        rankdpo(denoised, ranks="best")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="gains is 'x'"):
        rankdpo(denoised, gains="x")  # type: ignore[arg-type]
