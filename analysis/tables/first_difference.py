"""What each token lost, by its place relative to the first token in which chosen and rejected differ. Tables only."""

from dataclasses import dataclass

import pandas as pd

from analysis.tables import runs
from analysis.tables.curves import Change
from analysis.tables.intervals import finite, mean, mean_interval

WINDOW = (-5, 15)  # places shown, and looked at on either side of the first difference
FEWEST = 5  # pairs at a place


@dataclass(frozen=True)
class Profile:
    """table: see `by_place`. Of the chosen answers, in nats per token: before, at and after the first difference, and
    lead = at minus after, pair by pair, each over the pairs that have both."""

    table: pd.DataFrame
    before: Change
    at: Change
    after: Change
    lead: Change


def profile(tokens: pd.DataFrame) -> Profile:
    """Mean changes between the first and the last logged step of a run log's table of tokens.

    Empty and NaN where tokens were not logged twice.
    """
    rows = changes(tokens)
    rows = rows.loc[rows["place"].between(*WINDOW)]
    chosen = rows.loc[rows["side"] == "chosen"]
    parts = {
        name: chosen.loc[picked].groupby("pair_id")["change"].mean()
        for name, picked in (
            ("before", chosen["place"] < 0), ("at", chosen["place"] == 0), ("after", chosen["place"] > 0)
        )
    }  # fmt: skip
    parts["lead"] = parts["at"].sub(parts["after"]).dropna()
    return Profile(by_place(rows), **{name: _change(values) for name, values in parts.items()})


def changes(tokens: pd.DataFrame) -> pd.DataFrame:
    """pair_id, side, place, change: of every token logged at the first and at the last step.

    place: position minus that of the pair's first difference, where one side may have ended already; so a pair whose
    sides are the same is left out. change: nats of log-prob gained. tokens: the run log's table.
    """
    columns = ["pair_id", "side", "place", "change"]
    if tokens.empty or len(set(tokens["step"])) < 2:
        return pd.DataFrame(columns=columns)
    keys = ["pair_id", "side", "position"]
    first, last = (
        tokens.loc[tokens["step"] == s].set_index(keys) for s in (tokens["step"].min(), tokens["step"].max())
    )
    found = (last["logp"] - first["logp"]).rename("change").dropna().reset_index()
    found["place"] = found["position"] - found["pair_id"].map(first_differences(first.reset_index()))
    return found.dropna(subset=["place"]).astype({"place": int}).loc[:, columns]


def first_differences(tokens: pd.DataFrame) -> pd.Series:
    """By pair_id the first position at which the sides do not say the same token. tokens: rows of one step."""
    sides = [tokens.loc[tokens["side"] == s].set_index(["pair_id", "position"])["token_id"] for s in runs.SIDES]
    both = pd.concat(sides, axis=1, keys=runs.SIDES)
    apart = both.loc[both["chosen"].ne(both["rejected"])].reset_index()
    return apart.groupby("pair_id")["position"].min()


def by_place(rows: pd.DataFrame) -> pd.DataFrame:
    """side, place, n, mean, low, high (95 % interval of the mean); places of fewer than FEWEST pairs are left out."""
    found = []
    for side, place in sorted(set(zip(rows["side"], rows["place"]))):
        values = finite(rows.loc[(rows["side"] == side) & (rows["place"] == place), "change"])
        if len(values) >= FEWEST:
            found.append((side, place, len(values), mean(values), *mean_interval(values)))
    return pd.DataFrame(found, columns=["side", "place", "n", "mean", "low", "high"])


def _change(values: pd.Series) -> Change:
    return Change(len(values), mean(values), mean_interval(values))
