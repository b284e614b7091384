"""Figures of the gradients of chosen and rejected apart. Every function takes a table and returns a Figure."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.show.style import CHOSEN, DARK, NEUTRAL, REJECTED, SIDE, below, panels, styled
from analysis.show.wording import percent, span


@styled
def band(table: pd.DataFrame, slack: pd.Series) -> Figure:
    """log r in its band over steps, and the slack of the first measured pairs. table: entanglement.by_step."""
    figure, (left, right) = panels(2)
    left.fill_between(table["step"], table["lower"], table["upper"], color=CHOSEN, alpha=0.15, lw=0, label="band")
    left.plot(table["step"], table["lower"], color=REJECTED, lw=1.2, label="below it the chosen falls")
    left.plot(table["step"], table["upper"], color=NEUTRAL, lw=1.2, label="above it the rejected rises")
    left.plot(table["step"], table["log_ratio"], "o-", ms=3, color=DARK, lw=1.6, label="log of the incentive ratio")
    last = table.iloc[-1]
    interval = span((last["low"], last["high"]), percent)
    left.set(title=f"At the end {percent(last['share'])} of {int(last['n'])} pairs outside ({interval})")
    left.set(xlabel="optimizer step", ylabel="nats (median of the pairs)")
    below(left, 2)
    shown = slack[np.isfinite(slack)]
    right.hist(shown, bins=min(30, max(5, len(shown) // 2)), color=NEUTRAL)
    right.axvline(0, color=REJECTED, lw=1.2)
    free = int(np.isposinf(slack).sum())
    right.set(title=f"First update: {int((slack < 0).sum())} of {len(slack)} outside, {free} without edges")
    right.set(xlabel="slack (nats to the nearer edge)", ylabel="pairs")
    return figure


@styled
def sides(table: pd.DataFrame) -> Figure:
    """Norms of the two sides' gradients, and their sums so far. table: entanglement.sides."""
    figure, (left, right) = panels(2, height=3.4)
    for name, colour in SIDE.items():
        left.plot(table.index, table[name], "o-", ms=3, color=colour, label=name)
        right.plot(table.index, table[f"{name}_total"], "o-", ms=3, color=colour, label=name)
    left.set(title="Gradient of the loss through each side", xlabel="optimizer step", ylabel="norm before clipping")
    right.set(title="The same, added up: who moved the weights", xlabel="optimizer step", ylabel="sum of norms so far")
    below(left, 2)
    below(right, 2)
    return figure


@styled
def push(table: pd.DataFrame, title: str) -> Figure:
    """Log of the push ratio in probability space, and the share above 100. table: entanglement.push_by_step."""
    figure, (left, right) = panels(2, height=2.8)
    for axes, name, low, high in ((left, "mean", "low", "high"), (right, "share", "share_low", "share_high")):
        axes.fill_between(table["step"], table[low], table[high], color=REJECTED, alpha=0.18, lw=0)
        axes.plot(table["step"], table[name], "o-", ms=3, color=REJECTED)
        axes.set_xlabel("optimizer step")
    left.axhline(0, color=DARK, lw=0.8)
    left.set_ylabel("mean log of the ratio\n(nats)")
    right.set(ylabel="share above 100", ylim=(-0.02, 1.02))
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure
