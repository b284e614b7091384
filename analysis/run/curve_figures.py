"""Figures over steps with intervals: outcomes, modes, top-k entropy and mass, response types, the KL frontier."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.show.style import CHOSEN, CYCLE, DARK, NEUTRAL, REJECTED, SIDE, below, panels, styled
from analysis.show.units import Unit
from analysis.tables.frames import VIEWS
from analysis.tables.mass import RESPONSES

OUTCOME = {
    "separated": CYCLE[2],
    "both fell": REJECTED,
    "neither fell": CYCLE[3],
    "inverted": CYCLE[4],
}  # in the order of displacement.OUTCOMES
TYPE = {"chosen": CHOSEN, "rejected": REJECTED, "own": CYCLE[2], "other": CYCLE[3], "shuffled": NEUTRAL}


@styled
def outcomes(shares: pd.DataFrame, common: pd.DataFrame, differential: pd.DataFrame, title: str, ylabel: str) -> Figure:
    """Left: share of each outcome by step. Right: common and differential mode with 95 % intervals (ylabel: of what).

    shares: displacement.quadrants_by_step, its columns called as they are shown; the modes: curves.means.
    """
    figure, (left, right) = panels(2, height=3.4)
    left.stackplot(
        shares.index, *(shares[o] for o in shares), labels=list(shares), colors=list(OUTCOME.values()), alpha=0.85
    )
    left.set(title="what became of the pairs", xlabel="optimizer step", ylabel="share of pairs", ylim=(0, 1))
    below(left, 2)
    _line(right, common, DARK, "common mode: both sides together")
    _line(right, differential, CYCLE[4], "differential mode: the margin")
    right.axhline(0, color=DARK, lw=0.8)
    right.set(title="together and apart", xlabel="optimizer step", ylabel=ylabel)
    below(right, 1)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


@styled
def spread(tables: dict[str, dict[str, pd.DataFrame]], title: str) -> Figure:
    """Log-likelihood, top-k entropy and top-k mass per token by step, both sides. tables: label -> side -> means."""
    figure, axes = panels(len(tables), height=3.2)
    for axis, (label, sides) in zip(axes, tables.items()):
        for side, table in sides.items():
            _line(axis, table, SIDE[side], side)
        axis.set(title=label, xlabel="optimizer step")
        below(axis, 2)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


@styled
def frames(table: pd.DataFrame, title: str) -> Figure:
    """Mean log-prob of both answers by what is shown, a panel a side: open marks at the start, filled at the end, the
    bar the 95 % interval of what is lost against the pair's own frames. table: frames.by_view."""
    figure, axes = panels(2, height=3.4)
    for axis, (side, mine) in zip(axes, table.groupby("side", sort=False)):
        steps = sorted(set(mine["step"]))
        for step in steps:
            of, end = mine.loc[mine["step"] == step], step == steps[-1]
            own = float(of["mean"].iloc[0])
            bars = [of["high"] - of["lost"], of["lost"] - of["low"]]
            colour = SIDE[str(side)]
            axis.errorbar(
                [VIEWS[str(view)] for view in of["view"]], own - of["lost"], yerr=bars, fmt="o-" if end else "o--",
                color=colour, mfc=colour if end else "white", capsize=3, lw=1.6, alpha=1 if end else 0.7,
                label=f"step {step}",
            )  # fmt: skip
        axis.set(title=f"{side} answers", xlabel="frames shown")
        below(axis, 2)
    axes[0].set_ylabel("mean log-prob of an answer (nats)")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


@styled
def responses(table: pd.DataFrame, title: str) -> Figure:
    """Mean change of log-likelihood a token since the start, one line a response type. table: mass.responses."""
    figure, (axes,) = panels(1, height=3.6)
    for name, mine in table.groupby("name", sort=False):
        _line(axes, mine.rename(columns={"change": "mean"}, errors="ignore"), TYPE[str(name)], RESPONSES[str(name)])
    axes.axhline(0, color=DARK, lw=0.8)
    axes.set(title=title, xlabel="optimizer step", ylabel="change of log-likelihood\n(nats per token)")
    below(axes, 3)
    return figure


@styled
def frontier(table: pd.DataFrame, title: str, unit: Unit) -> Figure:
    """Accuracy and margin against √KL, or what stands for it, probe by probe, with 95 % intervals. table:
    curves.frontier."""
    figure, axes = panels(2, height=3.4)
    for axis, name, label in zip(axes, ("accuracy", "margin"), ("preference accuracy", f"margin{unit.bracketed}")):
        error = [table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]]
        axis.errorbar(table["deviation"], table[name], error, fmt="o-", ms=3, color=CHOSEN, ecolor="#bcd3df", lw=1.2)
        for row in table.iloc[[0, -1]].to_dict("records"):
            at = (row["deviation"], row[name])
            axis.annotate(f"step {row['step']:.0f}", at, (4, 5), textcoords="offset points", fontsize=9)
        axis.set(xlabel=unit.distance_axis, ylabel=label)
        axis.margins(x=0.15)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


@styled
def first_difference(table: pd.DataFrame, title: str) -> Figure:
    """Mean change of a token's log-prob by its place relative to the first difference, both sides, with 95 % intervals
    and below it the pairs behind each mean. table: first_difference.by_place."""
    figure = Figure(figsize=(10.0, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for side, mine in table.groupby("side"):
        _line(top, mine, SIDE[str(side)], str(side), "place")
        bottom.plot(mine["place"], mine["n"], "-", color=SIDE[str(side)], lw=1.2)
    top.axhline(0, color=DARK, lw=0.8)
    for axis in (top, bottom):
        axis.axvline(0, color=NEUTRAL, lw=0.9, ls="--")
    top.set(ylabel="mean change of log-prob\n(nats per token)")
    top.legend(loc="best")
    bottom.set(xlabel="tokens after the first differing one (0 = that token)", ylabel="pairs", ylim=(0, None))
    bottom.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def _line(axes: Axes, table: pd.DataFrame, colour: str, label: str, x: str = "step") -> None:
    """A mean with the band of its interval."""
    axes.fill_between(table[x], table["low"], table["high"], color=colour, alpha=0.18, lw=0)
    axes.plot(table[x], table["mean"], "o-", ms=3, color=colour, label=label)
