"""Numbers over training steps: quantile bands of likelihoods, KL, gradient norms."""

import pandas as pd

from analysis import runs
from analysis.intervals import finite

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


def kl(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean KL in nats per response by step (index), one column a side and direction; only what was measured."""
    present = [c for c in KL if len(finite(runs.column(rows, c)))]
    if not present:
        return pd.DataFrame()
    return pd.DataFrame({c: runs.column(rows, c).groupby(rows["step"]).mean() for c in present})


def gradients(steps: pd.DataFrame) -> pd.DataFrame:
    """Gradient norms before clipping by step (index): `total`, then one column a layer group."""
    if steps.empty or "grad_norm" not in steps:
        return pd.DataFrame()
    groups = [c for c in steps.columns if c.startswith("grad_norm/")]
    named = {"total": "grad_norm"} | {c.removeprefix("grad_norm/"): c for c in groups}
    table = pd.DataFrame({label: runs.column(steps, c) for label, c in named.items()})
    return table.set_index(steps["step"]).dropna(how="all")
