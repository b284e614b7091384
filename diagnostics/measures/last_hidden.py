"""Inner product of the two last hidden states."""

from torch import Tensor

from diagnostics.columns import Column
from diagnostics.measures import unmeasured
from diagnostics.stats import PairStats, wide

NEEDS = {"hidden"}
COLUMNS = {
    "last_hidden_similarity": Column(
        "last-hidden inner product",
        "squared units of the hidden states",
        "inner product of the states at the end of the two answers",
        "highest",
        flags=True,
    ),
}


def last_hidden_similarity(pair: PairStats) -> Tensor:
    """<h+, h->: inner product of the states in which the model has read all of each answer and predicts its EOS.

    h is the vector that the head multiplies to predict the last completion token (for a completion cut short of
    its EOS that is its last text token).
    (B,) float64, in squared units of the hidden states; higher = more similar. NaN without hidden states, and
    where a completion has no token.
    Source: arXiv 2410.08847, section 5 (a baseline that CHES is compared with).
    """
    chosen, rejected = pair.chosen.last_hidden, pair.rejected.last_hidden
    if chosen is None or rejected is None:
        return unmeasured(pair)
    dtype = wide(chosen.device)
    return (chosen.to(dtype) * rejected.to(dtype)).sum(-1)
