"""Anchored preference optimization for models worse than the chosen answers. arXiv 2408.06266 (APO-zero)."""

import torch

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive, rewarded

NEEDS = ("reference",)
PROVENANCE = "TRL"


def apo_zero(pair: PairStats, *, beta: float = 0.1) -> ObjectiveOutput:
    """Raise the chosen likelihood above the reference's and lower the rejected below it. arXiv 2408.06266.

    losses = 1 - sigmoid(beta * u) + sigmoid(beta * v), u and v the log-ratios (policy - reference, nats, summed over
    completion tokens) of chosen and rejected; (B,), 0 to 2, lower is better, 1 where policy = reference.
    rewards = beta * u and beta * v. beta 0.1 is the paper's.
    For a chosen answer that is better than what the model writes. Each side has a loss of its own, so the chosen
    likelihood gains by rising alone, which works against displacement; gradients fade on either side far from 0.
    Equals TRL's `apo_zero`.
    """
    require_positive(beta=beta)
    chosen, rejected = (beta * ratio for ratio in logratios(pair))
    # sigmoid(-x) is 1 - sigmoid(x) with all its digits
    return rewarded(torch.sigmoid(-chosen) + torch.sigmoid(rejected), chosen, rejected)
