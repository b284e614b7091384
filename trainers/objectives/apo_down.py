"""Anchored preference optimization for models better than the chosen answers. arXiv 2408.06266 (APO-down)."""

import torch

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive, rewarded

NEEDS = ("reference",)
PROVENANCE = "TRL"


def apo_down(pair: PairStats, *, beta: float = 0.1) -> ObjectiveOutput:
    """Lower both likelihoods, the rejected one more. arXiv 2408.06266.

    losses = sigmoid(beta * u) + 1 - sigmoid(beta * (u - v)), u and v the log-ratios (policy - reference, nats, summed
    over completion tokens) of chosen and rejected; (B,), 0 to 2, lower is better, 1 where policy = reference.
    rewards = beta * u and beta * v. beta 0.1 is the paper's.
    For a chosen answer that is worse than what the model writes: the chosen likelihood is pushed down on purpose, so
    this is displacement asked for. Gradients fade far from 0. Equals TRL's `apo_down`.
    """
    require_positive(beta=beta)
    chosen, rejected = (beta * ratio for ratio in logratios(pair))
    # sigmoid(-x) is 1 - sigmoid(x) with all its digits
    return rewarded(torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen), chosen, rejected)
