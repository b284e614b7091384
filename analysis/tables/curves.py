"""Numbers over training steps: quantile bands of likelihoods, KL, gradient norms."""

import math
from dataclasses import dataclass

import pandas as pd

from analysis.tables import runs
from analysis.tables.intervals import NOTHING, finite, mean, mean_interval, wilson

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
KL = ("chosen_kl", "rejected_kl", "chosen_kl_reverse", "rejected_kl_reverse")


def bands(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Per step: n, mean and the quantiles q10 q25 q50 q75 q90 of a pair column. Steps without a value are left out."""
    found = []
    for step in sorted(rows["step"].unique()):
        group = rows.loc[rows["step"] == step]
        values = finite(runs.column(group, column))
        if len(values):
            quantiles = pd.Series(values).quantile(list(QUANTILES)).to_list()
            found.append((int(step), len(values), float(values.mean()), *quantiles))
    return pd.DataFrame(found, columns=["step", "n", "mean", *(f"q{round(100 * q)}" for q in QUANTILES)])


def means(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """step, n, mean, low, high (95 % interval of the mean) of a pair column; steps without a value are left out."""
    found = []
    for step, group in rows.groupby("step"):
        values = finite(runs.column(group, column))
        if len(values):
            found.append((step, len(values), float(values.mean()), *mean_interval(values)))
    return pd.DataFrame(found, columns=["step", "n", "mean", "low", "high"])


@dataclass(frozen=True)
class Change:
    """Mean change of a pair column from its first to its last measured step, over the n pairs measured at both."""

    n: int
    mean: float
    interval: tuple[float, float]


def change(rows: pd.DataFrame, column: str) -> Change:
    """How far a pair column moved, pair by pair; NaN where it was measured at fewer than two steps."""
    values = runs.column(rows, column)
    measured = rows.assign(value=values).loc[values.notna()]
    if len(set(measured["step"])) < 2:
        return Change(0, math.nan, NOTHING)
    first, last = (
        measured.loc[measured["step"] == s].drop_duplicates("pair_id").set_index("pair_id")["value"]
        for s in (measured["step"].min(), measured["step"].max())
    )
    moved = finite((last - first).to_numpy())
    return Change(len(moved), mean(moved), mean_interval(moved))


def per_token(rows: pd.DataFrame) -> pd.DataFrame:
    """Pair rows with chosen_avg_logps and rejected_avg_logps, nats per token."""
    return rows.assign(
        **{f"{s}_avg_logps": runs.column(rows, f"{s}_logps") / runs.column(rows, f"{s}_length") for s in runs.SIDES}
    )


def frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """What the preference cost in divergence, one row a step after the start: n, deviation, accuracy and margin.

    deviation = sqrt(mean KL(policy || reference)), the KL in nats per response, mean of both sides of a pair (after
    arXiv 2406.02900). accuracy: share of pairs whose margin grew, with its Wilson interval; margin: mean growth of
    log p(chosen) - log p(rejected) in nats with its interval. Step 0 is left out: no margin has moved there.
    """
    divergence = (runs.column(rows, "chosen_kl_reverse") + runs.column(rows, "rejected_kl_reverse")) / 2
    measured = rows.assign(kl=divergence).loc[divergence.notna() & rows["margin_change"].notna() & (rows["step"] > 0)]
    found = [_on_frontier(s, measured.loc[measured["step"] == s]) for s in sorted(measured["step"].unique())]
    return pd.DataFrame(found, columns=_FRONTIER)


_FRONTIER = ["step", "n", "deviation", "accuracy", "accuracy_low", "accuracy_high"]
_FRONTIER += ["margin", "margin_low", "margin_high"]


def _on_frontier(step: int, group: pd.DataFrame) -> tuple[float, ...]:
    margin, n = finite(group["margin_change"]), len(group)
    right = int((margin > 0).sum())
    deviation = math.sqrt(max(0.0, mean(group["kl"])))
    return (step, n, deviation, right / n, *wilson(right, n), mean(margin), *mean_interval(margin))


def kl(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean KL in nats per response by step (index), one column a side and direction; only what was measured."""
    present = [c for c in KL if len(finite(runs.column(rows, c)))]
    if not present:
        return pd.DataFrame()
    return pd.DataFrame({c: runs.column(rows, c).groupby(rows["step"]).mean() for c in present})


def gradients(steps: pd.DataFrame) -> pd.DataFrame:
    """Gradient norms before clipping by step (index): `total`, then one column a layer group; of a trace, the total
    that its trainer logged."""
    if not steps.empty and "grad_norm" not in steps and "theirs/grad_norm" in steps:
        steps = steps.rename(columns={"theirs/grad_norm": "grad_norm"})
    if steps.empty or "grad_norm" not in steps:
        return pd.DataFrame()
    groups = [c for c in steps.columns if c.startswith("grad_norm/")]
    named = {"total": "grad_norm"} | {c.removeprefix("grad_norm/"): c for c in groups}
    table = pd.DataFrame({label: runs.column(steps, c) for label, c in named.items()})
    return table.set_index(steps["step"]).dropna(how="all")
