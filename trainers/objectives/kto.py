"""Kahneman-Tversky optimization. arXiv 2402.01306."""

from collections.abc import Mapping

from torch import sigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, logratios, require_not_negative, require_positive, rewarded

NEEDS = ("reference", "mismatched", "whole batch")
PROVENANCE = "TRL"


def statistics(pair: PairStats, previous: Mapping[str, float] | None) -> dict[str, float]:
    """kl: estimate of KL(policy || reference) in nats, the mean log-ratio (policy - reference) of the batch's prompts
    with other prompts' answers, at least 0. Nothing is carried over from batch to batch."""
    return {"kl": max(0.0, column(pair, "mismatched_logratios").mean().item())}


_statistics = statistics  # the keyword of the same name hides it


def kto(
    pair: PairStats,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    statistics: Mapping[str, float] | None = None,
) -> ObjectiveOutput:
    """Chosen answers as gains and rejected ones as losses against the policy's drift z. arXiv 2402.01306.

    losses = (desirable_weight * (1 - sigmoid(beta * (u - z))) + undesirable_weight * (1 - sigmoid(beta * (z - v)))) / 2
    u and v the log-ratios (policy - reference, nats, summed over completion tokens) of chosen and rejected; (B,),
    lower is better, 1/2 where policy = reference (weights 1). rewards = beta * u and beta * v.
    z = [mean of pair.columns["mismatched_logratios"]]+, without gradient, or `statistics["kl"]`: batch-coupled, and
    it needs a batch of more than one. Every chosen answer is desirable, every rejected one undesirable.
    A pair's loss is the mean of its two sides' terms: the mean over pairs is the mean over all 2B answers, as in
    TRL's KTOTrainer and HALOs. Published defaults: beta 0.1, weights 1; with unequal numbers the authors advise
    (desirable_weight * n_desirable) / (undesirable_weight * n_undesirable) from 1 to 4/3. HALOs averages z over
    non-empty answers only. The term of a side far below or above z has no slope, so neither side is pushed for ever;
    a fall of chosen answers that z shares is not opposed.
    """
    require_positive(beta=beta)
    require_not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    chosen, rejected = logratios(pair)
    kl = (statistics or _statistics(pair, None))["kl"]
    desirable = desirable_weight * sigmoid(beta * (kl - chosen))  # 1 - sigmoid(x) = sigmoid(-x)
    undesirable = undesirable_weight * sigmoid(beta * (rejected - kl))
    return rewarded((desirable + undesirable) / 2, beta * chosen, beta * rejected)
