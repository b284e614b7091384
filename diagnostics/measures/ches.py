"""Centered hidden embedding similarity (CHES)."""

from torch import Tensor

from diagnostics.columns import Column
from diagnostics.measures import unmeasured
from diagnostics.stats import PairStats, wide

NEEDS = {"hidden"}
COLUMNS = {
    "ches_score": Column(
        "CHES",
        "squared units of the hidden states",
        "inner products of summed hidden states, <S+, S- - S+>",
        "highest",
        mean="ches/mean",
        flags=True,
    ),
}


def ches_score(pair: PairStats) -> Tensor:
    """CHES of each pair: how far training on it is expected to push probability off the chosen answer.

    CHES = <S+, S-> - <S+, S+>, where S is the sum of the vectors that the head multiplies, over the positions
    that predict completion tokens (the last prompt token up to the token before the last; EOS is predicted too).
    (B,) float64, in squared units of the hidden states; higher = more similar = more displacement. It is not
    symmetric, is 0 for identical completions and for two completions of one token, and grows with the length
    of the rejected side. NaN without hidden states.
    Source: arXiv 2410.08847, Definition 2.
    """
    chosen, rejected = pair.chosen.hidden_sum, pair.rejected.hidden_sum
    if chosen is None or rejected is None:
        return unmeasured(pair)
    dtype = wide(chosen.device)
    chosen, rejected = chosen.to(dtype), rejected.to(dtype)
    # one product: the difference of two large inner products would lose the digits that matter
    return (chosen * (rejected - chosen)).sum(-1)
