"""Score tables: which measures there are, how they agree, what length explains. Tables only."""

import math

import pandas as pd

from analysis import runs
from analysis.intervals import auroc, spearman, spearman_interval
from analysis.predictors import NAMES
from analysis.predictors import measures as measure_columns

MARGIN = "reference_margin"


def table(flags: runs.Flags) -> pd.DataFrame:
    """The scored rows, with length_difference (rejected - chosen, tokens) and reference_margin (nats) added."""
    scored = flags.scores.loc[flags.scores["status"] == "scored"].reset_index(drop=True)
    length = runs.column(scored, "rejected_length") - runs.column(scored, "chosen_length")
    margin = runs.column(scored, "chosen_logps") - runs.column(scored, "rejected_logps")
    return scored.assign(**{"length_difference": length, MARGIN: margin})


def measures(scored: pd.DataFrame) -> list[str]:
    """Names of the measures that hold at least one number: the known ones first, then whatever else was scored."""
    return [name for name in measure_columns(scored) if len(scored[name].dropna())]


def label(name: str) -> str:
    """What a measure is called on the page."""
    return NAMES.get(name, name)


def agreement(scored: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Spearman rank correlation of every two measures; NaN where one of them does not vary."""
    rows = [[spearman(scored[a], scored[b]) for b in names] for a in names]
    return pd.DataFrame(rows, index=names, columns=names)


def overlap(scored: pd.DataFrame, names: list[str], share: float = 0.1) -> pd.DataFrame:
    """Share of pairs that the top `share` of two measures have in common; by chance it would be `share`."""
    count = max(1, round(share * len(scored)))
    tops = {name: set(scored.nlargest(count, name)["pair_id"]) for name in names}
    rows = [[len(tops[a] & tops[b]) / count for b in names] for a in names]
    return pd.DataFrame(rows, index=names, columns=names)


def length_confounds(scored: pd.DataFrame) -> pd.DataFrame:
    """measure, n, Spearman with the length difference and its interval, with each side's length."""
    found = []
    for name in [m for m in measures(scored) if m != "length_difference"]:
        x, length = scored[name], scored["length_difference"]
        sides = [spearman(x, runs.column(scored, f"{side}_length")) for side in runs.SIDES]
        found.append((name, len(x.dropna()), spearman(x, length), *spearman_interval(x, length), *sides))
    return pd.DataFrame(found, columns=["measure", "n", "spearman", "low", "high", "chosen", "rejected"])


def ordering(scored: pd.DataFrame) -> str:
    """The measure the flags were ranked by, as flag_reason or the ranks tell it; the first measure otherwise."""
    names = measures(scored)
    ranks = runs.column(scored, "rank")
    follows = {name: spearman(-scored[name], ranks) for name in names}
    known = {name: rho for name, rho in follows.items() if not math.isnan(rho)}
    return max(known, key=lambda name: known[name]) if known else names[0]


def reasons(audit: pd.DataFrame) -> pd.DataFrame:
    """status, reason, rows: every input row counted once."""
    if audit.empty:
        return pd.DataFrame(columns=["status", "reason", "rows"])
    counted = audit.fillna({"reason": ""}).groupby(["status", "reason"]).agg(rows=("pair_id", "size"))
    return counted.reset_index().sort_values("rows", ascending=False, ignore_index=True)


def doubts(audit: pd.DataFrame) -> pd.DataFrame:
    """doubt, rows: kept rows by each doubt they carry; a row with two doubts counts in both."""
    if audit.empty or "doubts" not in audit:
        return pd.DataFrame(columns=["doubt", "rows"])
    codes = audit["doubts"].fillna("").str.split("; ").explode()
    counted = codes[codes != ""].value_counts()
    return pd.DataFrame({"doubt": counted.index, "rows": counted.to_numpy()})


def kind_auroc(flags: runs.Flags, positive: str) -> pd.DataFrame:
    """AUROC of every measure for telling pairs of kind `positive` from the others; needs a `kind` column."""
    scored = table(flags)
    if "kind" not in scored and "kind" in flags.audit:
        scored = scored.merge(
            flags.audit.loc[:, ["pair_id", "kind"]].drop_duplicates("pair_id"), on="pair_id", how="left"
        )
    if "kind" not in scored or not len(scored):
        return pd.DataFrame(columns=["measure", "n", "auroc"])
    is_kind = (scored["kind"] == positive).to_numpy()
    rows = [(m, len(scored), auroc(scored[m], is_kind)) for m in measures(scored)]
    return pd.DataFrame(rows, columns=["measure", "n", "auroc"])
