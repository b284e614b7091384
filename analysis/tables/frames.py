"""What the frames add to the answers: their log-probs with what the pairs show, and with other frames in its place."""

import pandas as pd

from analysis.tables import runs
from analysis.tables.intervals import mean, mean_interval

VIEWS = {"": "as they are", "perturbed": "masked and shuffled", "grey": "grey"}  # by the middle of the column's name


def by_view(rows: pd.DataFrame) -> pd.DataFrame:
    """Of the first and the last step at which the language-prior meter was taken, by side and view: side, view (a key
    of VIEWS), step, n, mean log-prob (nats), and lost: the mean that the pair's answer has less there than with its own
    frames (nats), with low and high (95 % interval of that mean). Empty where no pair shows anything.

    rows: pair rows of one split. Pairs that show nothing are left out.
    """
    taken = rows.loc[runs.column(rows, "chosen_grey_logps").notna()]
    steps = sorted({taken["step"].min(), taken["step"].max()}) if len(taken) else []
    found = [
        _line(taken.loc[taken["step"] == step], side, view) | {"step": int(step)}
        for step in steps
        for side in runs.SIDES
        for view in VIEWS
    ]
    return pd.DataFrame(found, columns=["side", "view", "step", "n", "mean", "lost", "low", "high"])


def _line(rows: pd.DataFrame, side: str, view: str) -> dict[str, object]:
    own = runs.column(rows, f"{side}_logps")
    there = runs.column(rows, f"{side}_{view}_logps") if view else own
    lost = (own - there).dropna()
    low, high = mean_interval(lost)
    return {
        "side": side,
        "view": view,
        "n": len(lost),
        "mean": mean(there),
        "lost": mean(lost),
        "low": low,
        "high": high,
    }
