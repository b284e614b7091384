"""Small margins: the change of the chosen log-prob by the absolute margin that the reference gives the pair."""

import math

import pandas as pd
from matplotlib.figure import Figure

from analysis.papers import WORLDS, Measured, Paper, once, spreads, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CYCLE, DARK, below, panels, styled
from analysis.show.wording import count
from analysis.tables import runs
from analysis.tables.intervals import spearman

BUCKETS = 5
CASES = {"all": "all", "large": "large", "random": "random"}


def measured(paper: Paper) -> dict[str, Measured]:
    """For each world: smallest against largest fifth, the rank correlation, absolute against signed, and the halves."""
    table, found = pairs(paper), {}
    for world in WORLDS:
        rows = where(table, world=world, case="all")
        if rows.empty:
            continue
        n = f"{count(rows['seed'].nunique(), 'seed')} of {len(rows) // rows['seed'].nunique()} pairs"
        by_seed = [of for _, of in rows.groupby("seed")]
        found[f"buckets_{world}"] = Measured([_gap(of) for of in by_seed], n)
        found[f"rank_{world}"] = Measured([spearman(of["absolute"], of["change"]) for of in by_seed], n)
        same = "no margin is below 0 here, so that both are one" * bool((rows["signed"] >= 0).all())
        found[f"signed_{world}"] = Measured([_signed_lead(of) for of in by_seed], n, note=same)
        found[f"halves_{world}"] = Measured(_halves(where(table, world=world)), n)
    return found


@once
def pairs(paper: Paper) -> pd.DataFrame:
    """One row a probed pair and run: world, seed, case, signed and absolute reference margin, change (nats)."""
    return pd.concat([_pairs(paper, row) for row in paper.runs.to_dict("records")], ignore_index=True)


def buckets(table: pd.DataFrame) -> pd.DataFrame:
    """Mean change by fifth of the absolute margin, world and seed; columns world, seed, bucket (1 smallest), change."""
    whole = where(table, case="all").copy()
    whole["bucket"] = whole.groupby(["world", "seed"])["absolute"].transform(_fifth)
    return whole.groupby(["world", "seed", "bucket"], as_index=False)["change"].mean()


def by_margin(paper: Paper) -> Block:
    """Mean change of the chosen log-prob in each fifth."""
    return page.picture(draw(buckets(pairs(paper))), "Change of chosen log-prob by fifth of the absolute margin")


def halves(paper: Paper) -> Block:
    """All pairs, the half of largest margin, a random half: mean change and share that fell, on the same pairs."""
    seeds = pairs(paper).pivot_table(["change", "fell"], ["world", "case", "seed"]).reset_index()
    table = spreads(seeds, {"world": WORLDS, "case": CASES}, ["change", "fell"])
    heads = {"case": "trained on", "change": "change of chosen, nats", "fell": "share that fell"}
    return page.table(table, heads=heads)


@styled
def draw(table: pd.DataFrame) -> Figure:
    """One panel a world: a point a seed, the line their mean."""
    worlds = [w for w in WORLDS if w in set(table["world"])]
    figure, all_axes = panels(len(worlds), height=3.6, width=3.6 * len(worlds) + 1)
    for axes, world in zip(all_axes, worlds):
        rows = where(table, world=world)
        axes.plot(rows["bucket"], rows["change"], "o", color=CYCLE[0], alpha=0.35, ms=4, label="one seed")
        axes.plot(rows.groupby("bucket")["change"].mean(), "-", color=CYCLE[0], lw=2, label="mean")
        axes.axhline(0, color=DARK, lw=0.8)
        axes.set(
            title=WORLDS[world], xlabel="fifth by |reference margin|, small to large", xticks=range(1, BUCKETS + 1)
        )
        axes.set_ylabel("change of chosen log-prob (nats)")
        below(axes, 2)
    return figure


def _pairs(paper: Paper, row: dict) -> pd.DataFrame:
    ends = runs.ends(runs.rows(paper.log(row["run"]), "probe"))
    signed = ends["ref_chosen_logps"] - ends["ref_rejected_logps"]
    labels = {name: row[name] for name in ("world", "seed", "case")}
    return pd.DataFrame(
        {"signed": signed, "absolute": signed.abs(), "change": ends["chosen_change"], "fell": runs.fell(ends, "chosen")}
    ).assign(**labels)


def _fifth(values: pd.Series) -> pd.Series:
    return (BUCKETS * (values.rank(method="first") - 1) // len(values) + 1).astype(int)


def _gap(rows: pd.DataFrame) -> float:
    fifth = _fifth(pd.Series(rows["absolute"]))
    return float(rows.loc[fifth == 1, "change"].mean() - rows.loc[fifth == BUCKETS, "change"].mean())


def _signed_lead(rows: pd.DataFrame) -> float:
    """NaN where no margin is below 0: there both are one, and a difference of 0 would speak against the claim."""
    change = rows["change"]
    if min(rows["signed"]) >= 0:
        return math.nan
    return abs(spearman(rows["signed"], change)) - abs(spearman(rows["absolute"], change))


def _halves(rows: pd.DataFrame) -> list[float]:
    """By seed: mean change after training on the large-margin half minus that after a random half, on all pairs."""
    table = rows.pivot_table("change", "seed", "case")
    return (table["large"] - table["random"]).tolist() if {"large", "random"} <= set(table) else []
