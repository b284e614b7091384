"""How far the two answers run together before they part."""

from rapidfuzz.distance import Prefix
from torch import Tensor

from diagnostics.columns import Column
from diagnostics.measures import unmeasured
from diagnostics.stats import PairStats

NEEDS = {"text"}
COLUMNS = {
    "shared_prefix": Column(
        "tokens before the first difference",
        "tokens",
        "how far the two answers run together",
        flags=True,
    ),
}


def shared_prefix(pair: PairStats) -> Tensor:
    """Number of leading completion tokens that both answers share, EOS left out: the place where they first differ.

    shared_prefix = length of the longest common start of the two texts' token ids. (B,) float64, 0 or more; NaN
    without token ids. From the first difference on, the chosen answer's tokens may lose likelihood. It grows with the
    length and neither end of it is known to be prone to displacement, so pairs are not flagged by it.
    Source: arXiv 2402.13228 (why pairs that differ in few tokens are displaced).
    """
    chosen, rejected = pair.chosen.texts, pair.rejected.texts
    if chosen is None or rejected is None:
        return unmeasured(pair)
    return unmeasured(pair).new_tensor([float(Prefix.similarity(a, b)) for a, b in zip(chosen, rejected, strict=True)])
