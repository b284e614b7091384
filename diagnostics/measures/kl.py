"""How far the policy's token distributions have moved from the reference's along each side."""

from torch import Tensor

from diagnostics.columns import Column
from diagnostics.measures import unmeasured
from diagnostics.stats import PairStats, SequenceStats

NEEDS = {"kl"}
COLUMNS = {
    "chosen_kl": Column(
        "KL(ref || policy), chosen",
        "nats",
        "exact over the vocabulary, summed over the chosen answer",
        mean="kl/chosen",
    ),
    "rejected_kl": Column(
        "KL(ref || policy), rejected",
        "nats",
        "exact over the vocabulary, summed over the rejected answer",
        mean="kl/rejected",
    ),
    "chosen_kl_reverse": Column(
        "KL(policy || ref), chosen",
        "nats",
        "exact over the vocabulary, summed over the chosen answer",
        mean="kl_reverse/chosen",
    ),
    "rejected_kl_reverse": Column(
        "KL(policy || ref), rejected",
        "nats",
        "exact over the vocabulary, summed over the rejected answer",
        mean="kl_reverse/rejected",
    ),
}


def chosen_kl(pair: PairStats) -> Tensor:
    """KL(ref || policy) along the chosen answer: exact over the vocabulary, summed over completion tokens.

    (B,) float64 in nats, 0 or more; higher = further from the reference. It weighs what the reference would say:
    it grows where the policy gives up tokens that the reference allows. NaN where KL was not measured.
    Source: arXiv 2404.11999 (the sequential KL divergence, reference first).
    """
    return _total(pair, pair.chosen, pair.chosen.per_token_kl)


def rejected_kl(pair: PairStats) -> Tensor:
    """KL(ref || policy) along the rejected answer: exact over the vocabulary, summed over completion tokens.

    (B,) float64 in nats, 0 or more; higher = further from the reference. NaN where KL was not measured.
    Source: arXiv 2404.11999 (the sequential KL divergence, reference first).
    """
    return _total(pair, pair.rejected, pair.rejected.per_token_kl)


def chosen_kl_reverse(pair: PairStats) -> Tensor:
    """KL(policy || ref) along the chosen answer: exact over the vocabulary, summed over completion tokens.

    (B,) float64 in nats, 0 or more; higher = further from the reference. It weighs what the policy says now: it
    grows where the policy takes up tokens that the reference rules out. NaN where KL was not measured.
    Source: arXiv 2305.18290, Eq. 3 (the divergence that DPO bounds), here along a given answer.
    """
    return _total(pair, pair.chosen, pair.chosen.per_token_kl_reverse)


def rejected_kl_reverse(pair: PairStats) -> Tensor:
    """KL(policy || ref) along the rejected answer: exact over the vocabulary, summed over completion tokens.

    (B,) float64 in nats, 0 or more; higher = further from the reference. NaN where KL was not measured.
    Source: arXiv 2305.18290, Eq. 3 (the divergence that DPO bounds), here along a given answer.
    """
    return _total(pair, pair.rejected, pair.rejected.per_token_kl_reverse)


def _total(pair: PairStats, side: SequenceStats, per_token: Tensor | None) -> Tensor:
    return unmeasured(pair) if per_token is None else side.masked_sum(per_token)
