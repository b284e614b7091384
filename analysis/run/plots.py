"""The figures of the run page, each from a run alone: for one's own notebook, and for the page.

Every function takes a RunLog (`chesboard.load_run`) and returns a matplotlib Figure, which a notebook shows and
`savefig` keeps. What the log does not hold raises DataError.
"""

import pandas as pd
from matplotlib.figure import Figure

from analysis.run import figures
from analysis.show import units
from analysis.show.wording import signed
from analysis.tables import curves, displacement, mass, runs
from diagnostics import outcomes
from diagnostics.errors import DataError
from diagnostics.runlog import RunLog


def plot_curves(run: RunLog, split: str = "probe") -> Figure:
    """Change of the chosen and the rejected log-prob since step 0 (nats per answer) by step: median, 25-75 and 10-90 %
    bands over the pairs of a split (probe, eval), the train rows as faint points."""
    unit, rows = units.of(run), units.of(run).turned(_rows(run, split))
    chosen, rejected = (curves.bands(rows, f"{side}_change") for side in runs.SIDES)
    ends = [(words, table) for words, table in (("Chosen moved", chosen), ("rejected", rejected)) if len(table)]
    words = ", ".join(f"{words} by {signed(float(table['mean'].iloc[-1]), unit.digits)}" for words, table in ends)
    train = unit.turned(runs.rows(run, "train")) if split != "eval" else pd.DataFrame()
    title = f"{words}{unit.nats} (mean of {_pairs(split)}; the line is their median)"
    least = unit.shown(-float(outcomes.least(runs.noise(run))))
    return figures.trajectories(chosen, rejected, train, title, unit, least)


def plot_displacement(run: RunLog, split: str = "probe") -> Figure:
    """Share of the pairs whose chosen answer fell (see docs/run-log.md) by step, with the 95 % Wilson interval, and
    the onset: the first step from which, to the end, they are displaced."""
    table = displacement.by_step(_rows(run, split))
    return figures.shares(table, displacement.onset(table), units.of(run).lost, _pairs(split))


def plot_outcomes(run: RunLog, split: str = "probe") -> Figure:
    """Chosen against rejected change of every pair at the end (nats per answer), coloured by the rank of its CHES
    before training; the four outcomes with their shares."""
    unit, ends = units.of(run), runs.ends(_rows(run, split))
    shares = displacement.quadrants(ends)
    if not sum(shares["n"]):
        raise DataError(f"{run.name}: no pair of the split {split} was measured on both sides.")
    return figures.quadrant(unit.turned(ends), shares, "start_ches_score", "CHES before training", unit)


def plot_kl(run: RunLog, split: str = "probe") -> Figure:
    """Exact KL between policy and reference in both directions on both answers by step, nats per answer (mean)."""
    table = curves.kl(_rows(run, split))
    if table.empty:
        raise DataError(f"{run.name}: no KL was measured; the run has no reference, or KL was switched off.")
    return figures.divergence(table, units.of(run))


def plot_mass(run: RunLog, split: str = "probe") -> Figure:
    """Who holds the probability where the two answers of a pair first differ, by step: the chosen token, the rejected
    one, those that gained most, all others (mean over a split's pairs; they add up to 1), and the most likely token."""
    if mass.ledger(run.mass, split).empty:
        raise DataError(f"{run.name}: no pair of the split {split} has a first differing token logged.")
    n = mass.probe_count(run, split)
    return figures.ledger(mass.named(run.mass, split=split), f"{n} {_pairs(split)}")


def plot_gradients(run: RunLog) -> Figure:
    """Gradient norm before clipping by step, in total and by layer group."""
    table = curves.gradients(run.steps)
    if table.empty:
        raise DataError(f"{run.name}: steps.jsonl has no grad_norm.")
    whose = "" if "grad_norm" in run.steps else ", as its trainer logged it"
    return figures.gradients(table, f"total{whose}")


def _pairs(split: str) -> str:
    return "held-out pairs" if split == "eval" else f"{split} pairs"


def _rows(run: RunLog, split: str) -> pd.DataFrame:
    rows = runs.rows(run, split)
    if rows.empty or bool(rows["chosen_change"].isna().all()):
        raise DataError(f"{run.name}: no pair of the split {split} has a chosen log-prob logged.")
    return rows
