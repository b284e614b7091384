"""The most likely tokens along each side: how spread out they are, and how much probability they hold."""

from torch import Tensor

from diagnostics.columns import Column
from diagnostics.measures import unmeasured
from diagnostics.stats import PairStats, SequenceStats

NEEDS = {"top"}
COLUMNS = {
    "chosen_topk_entropy": Column(
        "entropy of the top 10, chosen",
        "nats per token",
        "mean over the tokens of the chosen answer",
        mean="topk_entropy/chosen",
    ),
    "rejected_topk_entropy": Column(
        "entropy of the top 10, rejected",
        "nats per token",
        "mean over the tokens of the rejected answer",
        mean="topk_entropy/rejected",
    ),
    "chosen_topk_mass": Column(
        "mass of the top 10, chosen",
        "probability",
        "mean over the tokens of the chosen answer",
        mean="topk_mass/chosen",
    ),
    "rejected_topk_mass": Column(
        "mass of the top 10, rejected",
        "probability",
        "mean over the tokens of the rejected answer",
        mean="topk_mass/rejected",
    ),
}


def chosen_topk_entropy(pair: PairStats) -> Tensor:
    """H_10 along the chosen answer: -sum p log p over the ten most likely tokens, mean over its tokens.

    (B,) float64 in nats per token, with the model's own probabilities (not made to add up to 1). Lower than at the
    start = the policy grows sure of few tokens, whatever they are (collapse). NaN where it was not measured.
    Source: arXiv 2410.11677 (k = 10 is our choice).
    """
    return _mean(pair, pair.chosen, pair.chosen.per_token_top_entropy)


def chosen_topk_mass(pair: PairStats) -> Tensor:
    """M_10 along the chosen answer: probability of the ten most likely tokens, mean over its tokens.

    (B,) float64 in [0, 1]. Lower than at the start = probability leaks into the tail of the vocabulary. NaN where it
    was not measured.
    Source: arXiv 2410.11677 (k = 10 is our choice).
    """
    return _mean(pair, pair.chosen, pair.chosen.per_token_top_mass)


def rejected_topk_entropy(pair: PairStats) -> Tensor:
    """H_10 along the rejected answer: -sum p log p over the ten most likely tokens, mean over its tokens.

    (B,) float64 in nats per token, with the model's own probabilities (not made to add up to 1). NaN where it was not
    measured.
    Source: arXiv 2410.11677 (k = 10 is our choice).
    """
    return _mean(pair, pair.rejected, pair.rejected.per_token_top_entropy)


def rejected_topk_mass(pair: PairStats) -> Tensor:
    """M_10 along the rejected answer: probability of the ten most likely tokens, mean over its tokens.

    (B,) float64 in [0, 1]. NaN where it was not measured.
    Source: arXiv 2410.11677 (k = 10 is our choice).
    """
    return _mean(pair, pair.rejected, pair.rejected.per_token_top_mass)


def _mean(pair: PairStats, side: SequenceStats, per_token: Tensor | None) -> Tensor:
    return unmeasured(pair) if per_token is None else side.masked_sum(per_token) / side.lengths
