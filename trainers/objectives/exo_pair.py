"""Efficient exact optimization for pairs. arXiv 2402.00856, Eq. 16."""

from math import log, log1p

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_between, require_positive, rewarded

NEEDS = ("reference",)
PROVENANCE = "TRL"


def exo_pair(pair: PairStats, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> ObjectiveOutput:
    """Match the policy's preference to a smoothed label, in reverse KL. arXiv 2402.00856, Eq. 16.

    losses = a * (log a - log(1 - e)) + (1 - a) * (log(1 - a) - log e), a = sigmoid(beta * (u - v)), u and v the
    log-ratios (policy - reference, nats, summed over completion tokens) of chosen and rejected; (B,), in nats, lower
    is better. It is KL(Bernoulli(a) || Bernoulli(1 - e)), so 0 at the margin u - v = log((1 - e) / e) / beta.
    e = label_smoothing must be above 0 and below 0.5; TRL's default is 1e-3 (beta 0.1).
    rewards = beta * u and beta * v.
    Equals TRL's `exo_pair`. The authors' code sets log(1 - e) to 0 and log e to -10, which do not sum to 1: other
    constants, almost the same slope as e = exp(-10).
    The KL is mode-seeking and its gradient fades where the pair is far on the wrong side (a near 0). It looks at the
    margin alone, so it does not stop displacement.
    """
    require_positive(beta=beta, label_smoothing=label_smoothing)
    require_between(0, 0.5, closed=False, label_smoothing=label_smoothing)
    chosen, rejected = (beta * ratio for ratio in logratios(pair))
    right, wrong = logsigmoid(chosen - rejected), logsigmoid(rejected - chosen)
    losses = right.exp() * (right - log1p(-label_smoothing)) + wrong.exp() * (wrong - log(label_smoothing))
    return rewarded(losses, chosen, rejected)
