"""Figures of the scorecard."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.scorecard.predictors import BASELINE
from analysis.show.style import CHOSEN, DARK, NEUTRAL, REJECTED, panels, styled
from analysis.show.units import Unit
from analysis.show.wording import for_plot
from analysis.tables.columns import label


@styled
def forest(card: pd.DataFrame, unit: Unit) -> Figure:
    """Spearman and AUROC of every measure with 95 % intervals, best on top; hollow: at equal length difference, where
    answers have lengths."""
    order = card.loc[(card["given"] == "") & card["spearman"].notna()].sort_values("spearman")["measure"].tolist()
    told = len(card["auroc"].dropna()) > 0
    figure, axes = panels(2 if told else 1, height=1.3 + 0.34 * len(order), width=10.5)
    _rows(axes[0], card, order, "spearman", 0.0)
    axes[0].set_yticks(range(len(order)), [for_plot(label(m), 52) for m in order])
    axes[0].set(title=f"Spearman with {unit.ranked}", xlabel="rank correlation")
    if told:
        _rows(axes[1], card, order, "auroc", 0.5)
        axes[1].set_yticks(range(len(order)), [""] * len(order))
        axes[1].set(title="AUROC for “fell”", xlabel="0.5 is chance")
    if unit.by_token:
        figure.supxlabel(
            "filled: as it is   ·   hollow: at equal length difference   ·   red line: length difference alone"
        )
    return figure


def _rows(axes: Axes, card: pd.DataFrame, order: list[str], name: str, chance: float) -> None:
    axes.axvline(chance, color=DARK, lw=0.9, ls="--")
    alone = card.loc[card["measure"] == BASELINE, name].dropna()
    if len(alone):
        axes.axvline(alone.iloc[0], color=REJECTED, lw=0.9)
    for row in card.to_dict("records"):
        if row["measure"] not in order or row[name] != row[name]:
            continue
        matched = bool(row["given"])
        at = order.index(row["measure"]) + (-0.16 if matched else 0.12)
        colour = NEUTRAL if matched else REJECTED if row["measure"] == BASELINE else CHOSEN
        axes.plot([row[f"{name}_low"], row[f"{name}_high"]], [at, at], color=colour, lw=1.6)
        axes.plot(row[name], at, "o", ms=5, color=colour, mfc="white" if matched else colour)
