"""Is the chosen likelihood falling, for how many pairs, since when: tables only. verdict.py judges them."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from analysis.intervals import finite, mean_interval, wilson

FEW = 5
OUTCOMES = ("separated", "both fell", "both rose", "inverted")


def by_step(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a step: n, share of pairs below their start with its interval, mean chosen change with its interval.

    rows: from runs.rows. share in [0, 1]; mean in nats, negative means the chosen responses lost likelihood.
    """
    steps = sorted(rows["step"].unique())
    return pd.DataFrame([_at_step(s, rows.loc[rows["step"] == s]) for s in steps], columns=_COLUMNS)


_COLUMNS = ["step", "n", "share", "share_low", "share_high", "mean", "mean_low", "mean_high"]


def _at_step(step: int, group: pd.DataFrame) -> dict[str, float]:
    change = finite(group["chosen_change"])
    fell, n = int((change < 0).sum()), len(change)
    share_low, share_high = wilson(fell, n)
    mean_low, mean_high = mean_interval(change)
    mean = float(change.mean()) if n else math.nan
    share = fell / n if n else math.nan
    return dict(zip(_COLUMNS, (step, n, share, share_low, share_high, mean, mean_low, mean_high)))


def onset(table: pd.DataFrame) -> float:
    """First measured step from which, up to the last one, the pairs are displaced (see is_displaced).

    table: from by_step. NaN when they are not displaced at the last measurement: displacement never set in, or it
    passed again. Step 0 cannot be an onset: nothing has moved there.
    """
    held = math.nan
    for row in table.iloc[::-1].to_dict("records"):
        if not is_displaced(row):
            break
        held = float(row["step"])
    return held


def is_displaced(row: Mapping[Hashable, Any]) -> bool:
    """Displaced at one step (a row of by_step): the 95 % interval of the share of pairs that fell lies above one half,
    or that of the mean change lies below 0.

    With fewer than five pairs there is no interval worth the name; then both plain numbers must say so.
    """
    if row["n"] < FEW:
        return bool(row["share"] > 0.5 and row["mean"] < 0)
    return bool(row["share_low"] > 0.5 or row["mean_high"] < 0)


def outcome(ends: pd.DataFrame) -> pd.Series:
    """What became of each pair, by the signs of chosen_change and rejected_change.

    separated: chosen held or rose, rejected fell. both fell. both rose (or held). inverted: chosen fell while
    rejected held or rose. Missing where a change was not measured.
    """
    chosen_fell, rejected_fell = ends["chosen_change"] < 0, ends["rejected_change"] < 0
    name = pd.Series("both rose", index=ends.index, dtype=object)
    name[~chosen_fell & rejected_fell] = "separated"
    name[chosen_fell & rejected_fell] = "both fell"
    name[chosen_fell & ~rejected_fell] = "inverted"
    return name.where(ends["chosen_change"].notna() & ends["rejected_change"].notna())


def quadrants(ends: pd.DataFrame) -> pd.DataFrame:
    """outcome, n, share, low, high (95 % Wilson interval) for the four outcomes."""
    names = outcome(ends).dropna()
    counts = [(o, int((names == o).sum())) for o in OUTCOMES]
    total = len(names)
    table = [(o, k, k / total if total else math.nan, *wilson(k, total)) for o, k in counts]
    return pd.DataFrame(table, columns=["outcome", "n", "share", "low", "high"])


def worst(ends: pd.DataFrame, count: int) -> pd.DataFrame:
    """The pairs whose chosen response lost most likelihood, worst first."""
    measured = ends.dropna(subset=["chosen_change"])
    return measured.sort_values(["chosen_change", "pair_id"]).head(count).reset_index(drop=True)
