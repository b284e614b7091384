"""Self-play preference optimization with hard labels. arXiv 2405.00675."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive, rewarded

NEEDS = ("reference",)
PROVENANCE = "TRL"


def sppo_hard(pair: PairStats, *, beta: float = 1e-3) -> ObjectiveOutput:
    """Pull each log-ratio to a target of its own, up for chosen and down for rejected. arXiv 2405.00675.

    losses = (u - 1 / (2 beta))^2 + (v + 1 / (2 beta))^2, u and v the log-ratios (policy - reference, nats, summed
    over completion tokens) of chosen and rejected; (B,), in squared nats, lower is better. beta = 1 / eta, 1e-3 in
    the paper: the targets are then 500 and -500 nats, and values are near 5e5, so learning rates must be small
    (5e-7). rewards = beta * u and beta * v, whose targets are 1/2 and -1/2.
    Equals TRL's `sppo_hard`. The authors' loss is half of it, 0.5 * [(u - (q_chosen - 1/2) / beta)^2 +
    (v - (q_rejected - 1/2) / beta)^2], with q an answer's mean win probability over samples of the policy; hard
    labels are q_chosen = 1 and q_rejected = 0. The authors take the previous round's policy as reference.
    The targets are absolute: a chosen likelihood that falls under the reference's costs more whatever the rejected
    one does, which works against displacement.
    """
    require_positive(beta=beta)
    chosen, rejected = logratios(pair)
    target = 1 / (2 * beta)
    return rewarded((chosen - target) ** 2 + (rejected + target) ** 2, beta * chosen, beta * rejected)
