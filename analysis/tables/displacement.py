"""Is the chosen likelihood falling, for how many pairs, since when: tables only. verdict.py judges them."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables import runs
from analysis.tables.intervals import mean_interval, wilson
from diagnostics import outcomes

FEW = 5
DISPLACED, HELD, UNCLEAR = "displaced", "not displaced", "unclear"
OUTCOMES = ("separated", "both fell", "neither fell", "inverted")


def by_step(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a step: n, share of pairs that fell (runs.fell) with its interval, mean chosen change with its interval,
    noise.

    rows: from runs.rows. share in [0, 1]; mean in nats, negative means the chosen responses lost likelihood.
    """
    steps = sorted(rows["step"].unique())
    return pd.DataFrame([_at_step(s, rows.loc[rows["step"] == s]) for s in steps], columns=_COLUMNS)


_COLUMNS = ["step", "n", "share", "share_low", "share_high", "mean", "mean_low", "mean_high", "noise"]


def _at_step(step: int, group: pd.DataFrame) -> dict[str, float]:
    group = group.loc[np.isfinite(runs.column(group, "chosen_change"))]
    change, n = group["chosen_change"].to_numpy(), len(group)
    fell = int(runs.fell(group, "chosen").sum())
    share_low, share_high = wilson(fell, n)
    mean_low, mean_high = mean_interval(change)
    mean = float(change.mean()) if n else math.nan
    share = fell / n if n else math.nan
    noise = runs.column(group, "noise").max()
    return dict(zip(_COLUMNS, (step, n, share, share_low, share_high, mean, mean_low, mean_high, noise)))


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
    or that of the mean change lies wholly among the falls (outcomes.fell).

    With fewer than five pairs there is no interval worth the name; then both plain numbers must say so.
    """
    noise = row.get("noise", math.nan)
    if row["n"] < FEW:
        return bool(row["share"] > 0.5 and outcomes.fell(row["mean"], noise) == 1)
    return bool(row["share_low"] > 0.5 or outcomes.fell(row["mean_high"], noise) == 1)


def state(table: pd.DataFrame) -> str:
    """DISPLACED at the last step of by_step's table; HELD where the interval of the share lies below one half, or, with
    fewer than five pairs, where the plain share is not above it; UNCLEAR otherwise, and without a measured pair."""
    row: Any = table.iloc[-1].to_dict() if len(table) else {"n": 0}
    if not row["n"]:
        return UNCLEAR
    if is_displaced(row):
        return DISPLACED
    return HELD if (row["share"] <= 0.5 if row["n"] < FEW else row["share_high"] < 0.5) else UNCLEAR


def outcome(ends: pd.DataFrame) -> pd.Series:
    """What became of each pair, by which sides fell (runs.fell), as the recorder's quadrants.

    separated: chosen held or rose, rejected fell. both fell. neither fell: both held or rose (the recorder's
    both_rose). inverted: chosen fell while rejected held or rose. Missing where a change was not measured.
    """
    chosen_fell, rejected_fell = (runs.fell(ends, side) == 1 for side in runs.SIDES)
    name = pd.Series("neither fell", index=ends.index, dtype=object)
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


def quadrants_by_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of each outcome by step (index), columns in the order of OUTCOMES; steps without a measured pair are left
    out, and step 0, where nothing has moved. rows: from runs.rows."""
    found = {}
    for step in sorted(s for s in rows["step"].unique() if s > 0):
        names = outcome(rows.loc[rows["step"] == step]).dropna()
        if len(names):
            found[step] = [float((names == o).mean()) for o in OUTCOMES]
    return pd.DataFrame.from_dict(found, orient="index", columns=list(OUTCOMES)).rename_axis("step")


@dataclass(frozen=True)
class MonotoneFall:
    """Of the n pairs whose chosen response fell between step 0 and `first`, `again` fell at every later measurement and
    `lower` are lower at the last one than at `first`.

    last: the last measured step; checks: how many later measurements there were. first is NaN where nothing was
    measured after it.
    """

    n: int
    again: int
    lower: int
    first: float
    last: float
    checks: int


def monotone_fall(rows: pd.DataFrame) -> MonotoneFall:
    """The monotone-fall fraction of arXiv 2602.06788, with measurements in the place of epochs.

    rows: probe rows from runs.rows. `first` is the first measurement after one epoch that has a later one, or else the
    first after the start. A pair fell again at a step if its chosen likelihood fell since the step before; a pair that
    was not measured at every step from `first` on is left out.
    """
    table = rows.pivot_table(index="pair_id", columns="step", values="chosen_change", aggfunc="first").sort_index(
        axis=1
    )
    steps = [s for s in table.columns if s > 0]
    if len(steps) < 2:
        return MonotoneFall(0, 0, 0, math.nan, math.nan, 0)
    epochs = dict(zip(rows["step"], rows["epoch"])) if "epoch" in rows else {}
    first = next((s for s in steps[:-1] if epochs.get(s, math.nan) >= 1), steps[0])
    noise = runs.column(rows, "noise").iloc[0]
    later = table.loc[outcomes.fell(table[first], noise) == 1, [s for s in steps if s >= first]].dropna()
    again = (outcomes.fell(later.diff(axis=1).iloc[:, 1:], noise) == 1).all(axis=1)
    lower = outcomes.fell(later.iloc[:, -1] - later.iloc[:, 0], noise)
    return MonotoneFall(
        len(later), int(again.sum()), int(lower.sum()), float(first), float(steps[-1]), later.shape[1] - 1
    )


def worst(ends: pd.DataFrame, count: int) -> pd.DataFrame:
    """Of the pairs whose chosen response fell (runs.fell), those that lost most likelihood, worst first."""
    fallen = ends.loc[runs.fell(ends, "chosen") == 1]
    return fallen.sort_values(["chosen_change", "pair_id"]).head(count).reset_index(drop=True)
