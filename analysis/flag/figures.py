"""Figures of a score table."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.show.style import CHOSEN, DARK, NEUTRAL, REJECTED, panels, styled
from analysis.show.wording import correlation, for_plot, number


@styled
def distributions(scored: pd.DataFrame, labels: dict[str, str]) -> Figure:
    """Histogram of every measure; ticks at the bottom mark the flagged pairs."""
    figure, axes = panels(len(labels), rows=-(-len(labels) // 3), height=2.7)
    flagged = scored["flagged"].astype(bool) if "flagged" in scored else pd.Series(False, index=scored.index)
    for axis, (name, label) in zip(axes, labels.items()):
        values = scored[name].dropna()
        low, high = values.quantile([0.005, 0.995]) if len(values) > 100 else (values.min(), values.max())
        axis.hist(values.clip(low, high), bins=min(40, max(5, len(values) // 4)), color=CHOSEN, alpha=0.8)
        marked = scored.loc[flagged, name].dropna().clip(low, high)
        axis.plot(marked, [0] * len(marked), "|", color=REJECTED, ms=12, clip_on=False)
        axis.set(title=f"n = {len(values):,}, {len(marked):,} flagged", xlabel=_short(label), ylabel="pairs")
        axis.title.set_fontsize(9)
        axis.xaxis.label.set_fontsize(9)
    return figure


@styled
def agreement(rho: pd.DataFrame, overlap: pd.DataFrame, labels: list[str]) -> Figure:
    """Two heat maps: Spearman between measures, and the share of their top tenths in common."""
    figure, (left, right) = panels(2, height=5.2)
    short = [_short(label) for label in labels]
    _heat(left, rho, short, -1, 1, "RdBu_r")
    _heat(right, overlap, short, 0, 1, "Blues")
    right.set_yticklabels([])
    left.set_title("Rank correlation (Spearman)")
    right.set_title("Most prone tenths shared (chance: 0.10)")
    return figure


@styled
def length(scored: pd.DataFrame, table: pd.DataFrame, labels: dict[str, str]) -> Figure:
    """Each measure against the length difference."""
    figure, axes = panels(len(labels), rows=-(-len(labels) // 3), height=2.7)
    for axis, (name, label) in zip(axes, labels.items()):
        rho = table.loc[table["measure"] == name, "spearman"].iloc[0]
        axis.plot(scored["length_difference"], scored[name], ".", color=NEUTRAL, ms=4, alpha=0.6)
        axis.axvline(0, color=DARK, lw=0.8)
        axis.set(title=f"Spearman {correlation(rho)}", xlabel="rejected − chosen length (tokens)")
        axis.set_ylabel(_short(label))
    return figure


def _short(label: str) -> str:
    """A label without what it says in brackets."""
    return for_plot(label.split(" (")[0], 30)


def _heat(axes: Axes, table: pd.DataFrame, labels: list[str], low: float, high: float, colours: str) -> None:
    axes.imshow(table.to_numpy(dtype=float), vmin=low, vmax=high, cmap=colours, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    for i, row in enumerate(table.to_numpy(dtype=float)):
        for j, value in enumerate(row):
            ink = "white" if abs(value) > 0.65 * high else DARK
            axes.text(j, i, number(value) if value == value else "–", ha="center", va="center", color=ink, fontsize=8)
