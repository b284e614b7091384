"""Which measure, taken before training, told which pairs would lose chosen likelihood."""

import math

import pandas as pd

from analysis import runs
from analysis.intervals import auroc, finite, partial_spearman, spearman, spearman_interval

NAMES = {
    "ches_score": "CHES",
    "ln_ches_score": "CHES, length-normalised",
    "edit_similarity": "edit similarity",
    "last_hidden_similarity": "last-hidden inner product",
    "length_difference": "length difference (rejected − chosen)",
}
RAREST, COMMONEST = 0.05, 0.95


def table(ends: pd.DataFrame) -> pd.DataFrame:
    """One row a pair: pair_id, the measures as they stood at the pair's first measurement, and

    displacement: nats of chosen likelihood lost (positive = displaced); displacement_per_token; fell.
    ends: from runs.ends.
    """
    found = pd.DataFrame({"pair_id": ends["pair_id"], "displacement": -runs.column(ends, "chosen_change")})
    found["displacement_per_token"] = found["displacement"] / runs.column(ends, "chosen_length")
    found["fell"] = (found["displacement"] > 0).where(found["displacement"].notna())
    for name in list(NAMES)[:-1]:
        found[name] = runs.column(ends, f"start_{name}")
    found["length_difference"] = runs.column(ends, "rejected_length") - runs.column(ends, "chosen_length")
    return found


def scorecard(pairs: pd.DataFrame) -> pd.DataFrame:
    """One row a measure; pairs: from table(). Higher always means "predicted more displaced".

    n; spearman with displacement, its 95 % bootstrap interval; per_token: spearman with displacement per token;
    with_length: spearman with the length difference (the confound); given_length: spearman with displacement when
    the length difference is held fixed; auroc for "fell", NaN when almost none or almost all pairs fell.
    """
    return pd.DataFrame([_judge(pairs, name) for name in NAMES], columns=_COLUMNS)


_COLUMNS = ["measure", "n", "spearman", "low", "high", "per_token", "with_length", "given_length", "auroc"]


def _judge(pairs: pd.DataFrame, name: str) -> list[float | str]:
    x, y, length = (runs.column(pairs, c) for c in (name, "displacement", "length_difference"))
    n = len(finite(x + y))
    itself = name == "length_difference"
    given = math.nan if itself else partial_spearman(x, y, length)
    per_token = spearman(x, pairs["displacement_per_token"])
    return [name, n, spearman(x, y), *spearman_interval(x, y), per_token, spearman(x, length), given, _auroc(pairs, x)]


def _auroc(pairs: pd.DataFrame, x: pd.Series) -> float:
    known = pairs["displacement"].notna().to_numpy()
    fell = pairs["displacement"].to_numpy()[known] > 0
    share = float(fell.mean()) if len(fell) else math.nan
    return auroc(x.to_numpy()[known], fell) if RAREST <= share <= COMMONEST else math.nan
