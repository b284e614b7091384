"""Symmetric preferences over two similar pictures, each answer preferred before its own. arXiv 2506.11712 (SymMPO)."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import (
    ObjectiveOutput,
    logratio,
    logratios,
    require_not_negative,
    require_positive,
    rewarded,
)

NEEDS = ("reference",)
ROWS = {
    "second_answer": "(m1, y_2): the first picture with the answer that is right for the second one",
    "second_chosen": "(m2, y_2): the second picture with the answer that is right for it",
    "second_rejected": "(m2, y_w): the second picture with the chosen answer, which is right for the first one",
}
PROVENANCE = "code"


def symmpo(
    pair: PairStats,
    *,
    beta: float = 0.1,
    symmetric: float = 0.5,
    anchor: float = 1.0,
    consistency: float = 1e-4,
) -> ObjectiveOutput:
    """DPO on one picture, and both answers swapped over two similar pictures. arXiv 2506.11712 (SymMPO).

    losses = s(h(m1, y_w) - h(m1, y_l)) + symmetric * (s(z1) + s(z2)) + anchor * (s(h(m1, y_w)) + s(h(m2, y_2)))
    + consistency * (z1 - z2)^2, with s(z) = -log sigmoid(beta * z), z1 = h(m1, y_w) - h(m1, y_2) and z2 = h(m2, y_2) -
    h(m2, y_w); (B,), lower is better. h(m, y) is the log-ratio (policy - reference, nats, summed over completion
    tokens) of answer y to the one question before picture m: y_w is right for m1, y_l wrong for m1, y_2 right for m2,
    which is similar to m1. Rows: chosen (m1, y_w), rejected (m1, y_l), second_answer (m1, y_2), second_chosen
    (m2, y_2), second_rejected (m2, y_w).
    Where policy = reference it is (1 + 2 * symmetric + 2 * anchor) * log 2. symmetric, anchor and consistency 0: dpo.
    rewards = beta * h(m1, y_w) and beta * h(m1, y_l).
    Read in the authors' code; the defaults are theirs, with symmetric there lambda; anchor is 1 there. Their learning
    rate is 5e-6. The anchors push the log-ratios of both right answers above 0, which limits displacement; the margin
    terms alone do not. The last term asks that both pictures tell the answers apart by as much.
    """
    require_positive(beta=beta)
    require_not_negative(symmetric=symmetric, anchor=anchor, consistency=consistency)

    def s(z: Tensor) -> Tensor:
        return -logsigmoid(beta * z)

    chosen, rejected = logratios(pair)
    second = logratio(pair, "second_chosen")
    first_margin = chosen - logratio(pair, "second_answer")
    second_margin = second - logratio(pair, "second_rejected")
    losses = s(chosen - rejected) + symmetric * (s(first_margin) + s(second_margin))
    losses = losses + anchor * (s(chosen) + s(second)) + consistency * (first_margin - second_margin) ** 2
    return rewarded(losses, beta * chosen, beta * rejected)
