"""Similarity of the two answers as strings of tokens."""

from rapidfuzz.distance import Levenshtein
from torch import Tensor

from diagnostics.columns import Column
from diagnostics.measures import unmeasured
from diagnostics.stats import PairStats

NEEDS = {"text"}
COLUMNS = {
    "edit_similarity": Column(
        "edit similarity",
        "-1 to 0",
        "minus the normalised edit distance of the two answers",
        "highest",
        flags=True,
    ),
}


def edit_similarity(pair: PairStats) -> Tensor:
    """Minus the normalised Levenshtein distance between the token ids of the two completions, EOS left out.

    edit_similarity = -distance / length of the longer one; inserting, deleting and replacing a token cost 1 each.
    (B,) float64 between -1 (nothing in common) and 0 (identical; also two empty texts); higher = more similar.
    NaN without token ids.
    Source: arXiv 2410.08847, section 5 (a baseline that CHES is compared with).
    """
    chosen, rejected = pair.chosen.texts, pair.rejected.texts
    if chosen is None or rejected is None:
        return unmeasured(pair)
    distances = map(Levenshtein.normalized_distance, chosen, rejected)
    return unmeasured(pair).new_tensor([0.0 - distance for distance in distances])
