"""Where the probability went: gaining tokens, the ledger at the first differing position, EOS, tracked groups."""

import math

import numpy as np
import pandas as pd

from analysis.tables.intervals import finite, mean, mean_interval
from diagnostics.runlog import RunLog

LEDGER = ("chosen", "rejected", "argmax", "other")
EOS = ("chosen_eos", "rejected_eos")
SEEN = 0.005  # a smaller mean probability is no area that can be seen


def of_kind(mass: pd.DataFrame, kinds: tuple[str, ...], split: str | None = "probe") -> pd.DataFrame:
    """Rows of some kinds (and one split); empty, with its columns, where nothing was logged."""
    if mass.empty:
        return pd.DataFrame(columns=["step", "split", "pair_id", "kind", "name", "token", "prob", "change"])
    keep = mass["kind"].isin(kinds)
    return mass.loc[keep & (mass["split"] == split) if split else keep]


def movers(mass: pd.DataFrame, kind: str = "gained", split: str = "probe") -> pd.DataFrame:
    """Tokens that gained (or lost) at the last step, over all pairs of a split, most first.

    token, token_id, pairs (how many), mass (summed change of probability, signed), largest (one pair's change).
    """
    rows = of_kind(mass, (kind,), split)
    if rows.empty:
        return pd.DataFrame(columns=["token", "token_id", "pairs", "mass", "largest"])
    rows = rows.loc[(rows["step"] == rows["step"].max()) & (rows["change"] * _sign(kind) > 0)]
    extreme = "max" if kind == "gained" else "min"
    table = rows.groupby(["token", "token_id"], dropna=False).agg(
        pairs=("pair_id", "nunique"), mass=("change", "sum"), largest=("change", extreme)
    )
    return table.reset_index().sort_values("mass", ascending=kind != "gained", ignore_index=True)


def mean_by_step(rows: pd.DataFrame, by: str = "kind") -> pd.DataFrame:
    """Mean probability by step (index) and kind or name (columns)."""
    if rows.empty:
        return pd.DataFrame()
    return rows.pivot_table(index="step", columns=by, values="prob", aggfunc="mean")


def ledger(mass: pd.DataFrame, split: str = "probe") -> pd.DataFrame:
    """Mean probability over the pairs of a split, step by step, at the first position where the responses differ.

    Columns chosen, rejected, other (these add up to 1) and argmax (the most likely token, whichever it is).
    """
    return mean_by_step(of_kind(mass, LEDGER, split))


def named(mass: pd.DataFrame, most: int = 4, split: str = "probe") -> pd.DataFrame:
    """The ledger with the tokens that gained most taken out of `other`: mean probability over a split's pairs by step.

    Columns chosen, rejected, argmax, the tokens as logged (at most `most`), and other, which is what is left. A token
    counts in a pair where it is neither answer's and stands among the tokens that the log names there, the ten of
    largest gain at that step (at the start: at any step); elsewhere it is in `other`.
    """
    table, top = ledger(mass, split), movers(mass, split=split).head(most)
    pairs = of_kind(mass, ("chosen",), split).groupby("step")["pair_id"].nunique()
    both = of_kind(mass, ("chosen", "rejected"), split)
    taken = set(zip(both["pair_id"], both["token_id"])) if len(both) else set()
    rows = of_kind(mass, ("gained",), split)
    for token, token_id in zip(top["token"], top["token_id"]):
        mine = rows.loc[rows["token_id"] == token_id]
        mine = mine.loc[[(pair, token_id) not in taken for pair in mine["pair_id"]]]
        share = (mine.groupby("step")["prob"].sum() / pairs).reindex(table.index).fillna(0.0)
        share.iloc[0] = mine.groupby("pair_id")["prob_start"].first().sum() / pairs.iloc[0]
        if "other" in table and token not in table and share.max() >= SEEN:
            table[token] = share
            table["other"] = table["other"] - share
    return table


def eos(mass: pd.DataFrame) -> pd.DataFrame:
    """Mean probability of EOS where each response ends, by step: columns chosen_eos, rejected_eos."""
    return mean_by_step(of_kind(mass, EOS))


def tracked(mass: pd.DataFrame) -> pd.DataFrame:
    """Mean probability of each tracked group over the prompts of its set: columns `set: group`, by step."""
    rows = of_kind(mass, ("group",), split=None)
    return mean_by_step(rows.assign(label=rows["split"].astype(str) + ": " + rows["name"].astype(str)), "label")


RESPONSES = {
    "chosen": "chosen",
    "rejected": "rejected",
    "own": "the model's own answer at the start",
    "other": "another prompt's chosen",
    "shuffled": "chosen with its tokens shuffled",
}


def responses(mass: pd.DataFrame) -> pd.DataFrame:
    """The followed response types by step: name, step, n, logp, change, low, high.

    logp: mean over pairs of the log-prob a token, in nats (the table holds its exponential); change: its mean change
    since the pair's first measurement, with its 95 % interval. Types in the order of RESPONSES.
    """
    rows = of_kind(mass, ("response",))
    found = []
    for name in RESPONSES:
        mine = rows.loc[rows["name"] == name]
        table = np.log(mine.pivot_table(index="pair_id", columns="step", values="prob").astype(float))
        for step in table.columns:
            logps, moved = finite(table[step]), finite(table[step] - table[table.columns[0]])
            found.append((name, step, len(logps), mean(logps), mean(moved), *mean_interval(moved)))
    return pd.DataFrame(found, columns=["name", "step", "n", "logp", "change", "low", "high"])


def first_and_last(table: pd.DataFrame, name: str) -> tuple[float, float]:
    """First and last finite value of a column; NaN where it was not measured."""
    if name not in table or table[name].dropna().empty:
        return math.nan, math.nan
    values = table[name].dropna()
    return float(values.iloc[0]), float(values.iloc[-1])


def probe_count(run: RunLog, split: str = "probe") -> int:
    """How many pairs of a split the mass table follows."""
    rows = of_kind(run.mass, ("chosen",), split)
    return len(set(rows["pair_id"]))


def _sign(kind: str) -> int:
    return 1 if kind == "gained" else -1
