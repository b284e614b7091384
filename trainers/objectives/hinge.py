"""Hinge loss on the margin of log-ratios. arXiv 2309.06657 (RSO)."""

import torch

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive, rewarded

NEEDS = ("reference",)
PROVENANCE = "TRL"


def hinge(pair: PairStats, *, beta: float = 0.05) -> ObjectiveOutput:
    """Widen the margin of summed log-ratios to 1 / beta, and no further. arXiv 2309.06657.

    losses = max(0, 1 - beta * (u - v)), u and v the log-ratios (policy - reference, nats, summed over completion
    tokens) of chosen and rejected; (B,), lower is better, 1 where policy = reference, 0 (and no gradient) from the
    margin 1 / beta on. beta is the paper's gamma; 0.05 is its value.
    rewards = beta * u and beta * v.
    It looks at the margin alone, so it does not stop both likelihoods from falling until the margin is reached.
    Equals TRL's `hinge`. The loss of SLiC-HF, without a reference and with a likelihood term, is slic.
    """
    require_positive(beta=beta)
    chosen, rejected = logratios(pair)
    losses = torch.relu(1 - beta * (chosen - rejected))
    return rewarded(losses, beta * chosen, beta * rejected)
