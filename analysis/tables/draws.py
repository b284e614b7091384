"""Denoising errors by time: the `draws` table of a denoiser's run. Tables only."""

from collections.abc import Collection
from typing import Any

import pandas as pd

from analysis.tables import runs
from analysis.tables.intervals import finite, mean_interval
from diagnostics.runlog import RunLog

KEY = ["pair_id", "side", "draw"]


def ends(run: RunLog, split: str = "probe", pair_ids: Collection[str] | None = None) -> pd.DataFrame:
    """side, time, pairs, start and end (mean error at the first and at the last step whose draws were kept), change of
    the error in percent of the start's, and low, high: the 95 % interval of that mean change over pairs, in percent;
    by side and time. Draws measured at both steps alone; no row where one step was kept."""
    rows: Any = run.draws
    if rows.empty or rows["step"].nunique() < 2:
        return pd.DataFrame(columns=COLUMNS)
    rows = rows.loc[rows["split"] == split]
    if pair_ids is not None:
        rows = rows.loc[rows["pair_id"].isin(list(pair_ids))]
    first, last = (rows.loc[rows["step"] == step] for step in (run.draws["step"].min(), run.draws["step"].max()))
    both = first.merge(last[[*KEY, "error"]], on=KEY, suffixes=("", "_end"))
    found = []
    for side in runs.SIDES:
        for time, group in both.loc[both["side"] == side].groupby("time"):
            start, moved = float(group["error"].mean()), finite(group["error_end"] - group["error"])
            if not len(moved) or start <= 0:
                continue
            percents = [100 * v / start for v in (moved.mean(), *mean_interval(moved))]
            found.append((side, float(str(time)), len(moved), start, float(group["error_end"].mean()), *percents))
    return pd.DataFrame(found, columns=COLUMNS)


COLUMNS = ["side", "time", "pairs", "start", "end", "change", "low", "high"]
