"""Length-normalised centered hidden embedding similarity (LN-CHES)."""

from torch import Tensor

from diagnostics.columns import Column
from diagnostics.measures import unmeasured
from diagnostics.stats import PairStats, wide

NEEDS = {"hidden"}
COLUMNS = {
    "ln_ches_score": Column(
        "CHES, length-normalised",
        "squared units of the hidden states",
        "CHES on mean hidden states",
        "highest",
        mean="ln_ches/mean",
        flags=True,
    ),
}


def ln_ches_score(pair: PairStats) -> Tensor:
    """CHES on mean instead of summed hidden states; the one to filter data with, as length weighs less.

    LN-CHES = <m+, m-> - <m+, m+> with m = S / length: S as in ches_score, length = number of summed vectors
    = number of completion tokens, EOS included.
    (B,) float64, in squared units of the hidden states; higher = more similar = more displacement. 0 for
    identical completions. NaN without hidden states, and where a completion has no token.
    Source: arXiv 2410.08847, Definition 3.
    """
    chosen, rejected = pair.chosen.hidden_sum, pair.rejected.hidden_sum
    if chosen is None or rejected is None:
        return unmeasured(pair)
    dtype = wide(chosen.device)
    chosen = chosen.to(dtype) / pair.chosen.lengths[:, None]
    rejected = rejected.to(dtype) / pair.rejected.lengths[:, None]
    return (chosen * (rejected - chosen)).sum(-1)
