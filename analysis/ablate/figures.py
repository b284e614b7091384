"""Figures of an ablation."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.show.style import CHOSEN, DARK, NEUTRAL, panels, styled
from analysis.show.wording import for_plot

ARMS = {"flagged": (CHOSEN, -0.09), "random": (NEUTRAL, 0.09)}


@styled
def shares(table: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Each column against the share left out: flagged and random, same epochs and equal steps, and the full set.

    table: rows of Ablation.runs of one measure; points are seeds, bars t intervals over them.
    """
    figure, axes = panels(len(columns), rows=-(-len(columns) // 2), height=3.1)
    drops = sorted(set(table.loc[table["arm"] != "full", "drop"]))
    for axis, (name, words) in zip(axes, columns.items()):
        full = table.loc[table["arm"] == "full", name]
        axis.axhline(full.mean(), color=DARK, lw=1, label="all pairs")
        for arm, (colour, shift) in ARMS.items():
            for equal in (False, True):
                rows = table.loc[(table["arm"] == arm) & (table["equal_steps"] == equal)]
                _line(axis, rows, drops, name, colour, shift, arm, equal)
        axis.set_xticks(range(len(drops)), [f"{100 * d:g} %" for d in drops])
        axis.set(title=for_plot(words, 60), xlabel="pairs left out")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=3, fontsize=9)
    return figure


def _line(
    axes: Axes, rows: pd.DataFrame, drops: list[float], name: str, colour: str, shift: float, arm: str, equal: bool
) -> None:
    at = [drops.index(d) + shift for d in rows["drop"]]
    axes.plot(at, rows[name], "o", color=colour, ms=3.5, alpha=0.6, mfc="white" if equal else colour)
    known = [d for d in drops if d in set(rows["drop"])]
    means = [rows.loc[rows["drop"] == d, name].mean() for d in known]
    label = f"without {'the flagged' if arm == 'flagged' else 'random pairs'}{', equal steps' if equal else ''}"
    axes.plot([drops.index(d) + shift for d in known], means, "--" if equal else "-", color=colour, label=label)
