"""Figures of a run. Every function takes a table and returns a Figure; titles say the finding."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.show.style import CHOSEN, CYCLE, DARK, NEUTRAL, REJECTED, SIDE, below, panels, styled
from analysis.show.units import Unit
from analysis.show.wording import correlation, for_plot, number, percent, signed, visible
from analysis.tables.columns import label
from analysis.tables.mass import LEDGER


@styled
def trajectories(
    chosen: pd.DataFrame, rejected: pd.DataFrame, train: pd.DataFrame, title: str, unit: Unit, least: float
) -> Figure:
    """Change of chosen and rejected likelihood over steps: median, 25-75 and 10-90 % bands, train rows faint.

    chosen, rejected: curves.bands of the probe; train: pair rows of the train split (may be empty); all turned as the
    unit shows them; least: the change beyond which a response counts as moved, drawn where it can be told from 0.
    """
    figure, (left, right) = panels(2)
    for axes, table, side in ((left, chosen, "chosen"), (right, rejected, "rejected")):
        if len(train):
            axes.plot(train["step"], train[f"{side}_change"], ".", color=NEUTRAL, alpha=0.3, ms=4, label="train pairs")
        _band(axes, table, SIDE[side])
        axes.axhline(0, color=DARK, lw=0.8)
        axes.set(title=f"{side} {unit.response}s", xlabel="optimizer step", ylabel=unit.change)
        _room(axes, table)
        low, high = axes.get_ylim()
        if abs(least) > 0.02 * (high - low):
            axes.axhline(least, color=DARK, lw=0.9, ls=":", label=f"{unit.fallen} beyond {signed(least)}")
            axes.set_ylim(min(low, 1.2 * least), max(high, 1.2 * least))
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        below(axes, 2)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


@styled
def shares(table: pd.DataFrame, onset: float, lost: str, pairs: str) -> Figure:
    """Share of the pairs (which, in words) whose chosen answer fell since the start (`lost` in words), by step, with
    the 95 % Wilson band."""
    figure, (axes,) = panels(1, height=2.8)
    axes.fill_between(table["step"], table["share_low"], table["share_high"], color=CHOSEN, alpha=0.18, lw=0)
    axes.plot(table["step"], table["share"], "o-", color=CHOSEN, ms=3)
    axes.axhline(0.5, color=DARK, lw=0.8, ls="--", label="one half")
    last = table.iloc[-1]
    if not np.isnan(onset):
        axes.axvline(onset, color=REJECTED, lw=1.2, label=f"onset: step {onset:.0f}")
    axes.legend(loc="best", fontsize=9)
    title = f"At the end {percent(last['share'])} of {last['n']:.0f} {pairs} have {lost}"
    if not last["n"]:
        title = f"{pairs.capitalize()} that have {lost}; at the end none was measured"
    axes.set(title=title, xlabel="optimizer step", ylabel="share of pairs", ylim=(-0.02, 1.02))
    return figure


@styled
def quadrant(ends: pd.DataFrame, shares: pd.DataFrame, colour: str, colour_name: str, unit: Unit) -> Figure:
    """Chosen against rejected change of each probe pair at the end, coloured by a measure; outcomes named. Right and up
    is better: an error is drawn falling that way."""
    figure, (axes,) = panels(1, height=5.4, width=8.0)
    x, y, c = ends["chosen_change"], ends["rejected_change"], ends.get(colour)
    if c is not None and len(set(c.dropna())) > 1:
        rank = c.rank(pct=True)  # a few pairs have a hundred times the others' CHES
        points = axes.scatter(x, y, c=rank, cmap="viridis", vmin=0, vmax=1, s=26, lw=0.3, edgecolors="white")
        figure.colorbar(points, ax=axes, label=f"rank of {colour_name} (1 = highest)", shrink=0.8)
    else:
        axes.scatter(x, y, color=CHOSEN, s=26, alpha=0.8, lw=0)
    axes.axhline(0, color=DARK, lw=0.9)
    axes.axvline(0, color=DARK, lw=0.9)
    _name_quadrants(axes, shares, unit)
    title = f"{percent(_share(shares, 'both fell'))} of {sum(shares['n'])} pairs: {unit.both}"
    axes.set(title=title, xlabel=f"chosen: {unit.change}")
    axes.set_ylabel(f"rejected: {unit.change}")
    if unit.sign < 0:
        axes.invert_xaxis()
        axes.invert_yaxis()
    return figure


_CORNERS = {
    "separated": (0.99, 0.02, "right", "bottom"),
    "both fell": (0.01, 0.02, "left", "bottom"),
    "neither fell": (0.99, 0.98, "right", "top"),
    "inverted": (0.01, 0.98, "left", "top"),
}


def _name_quadrants(axes: Axes, shares: pd.DataFrame, unit: Unit) -> None:
    axes.margins(0.14)
    for name, (x, y, ha, va) in _CORNERS.items():
        words = f"{unit.outcome(name)}: {percent(_share(shares, name))}"
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 2}
        axes.text(x, y, words, transform=axes.transAxes, ha=ha, va=va, fontweight="bold", bbox=box)


def _share(shares: pd.DataFrame, name: str) -> float:
    return float(shares.loc[shares["outcome"] == name, "share"].iloc[0])


@styled
def predictors(pairs: pd.DataFrame, card: pd.DataFrame, most: int = 6, *, loss: str) -> Figure:
    """The measures of the largest rank correlation against realised displacement, pair by pair."""
    card = card.loc[(card["given"] == "") & card["spearman"].notna()]
    kept = card.sort_values("spearman", key=abs, ascending=False)["measure"].head(most).tolist()
    figure, axes = panels(len(kept), rows=1 + (len(kept) > 3), height=3.2, width=10.0 if most > 1 else 6.0)
    for axis, name in zip(axes, kept):
        row = card[card["measure"] == name].iloc[0]
        colours = [REJECTED if fell else CHOSEN for fell in pairs["fell"] == 1]
        axis.scatter(pairs[name], pairs["displacement"], c=colours, s=14, alpha=0.75, lw=0)
        axis.axhline(0, color=DARK, lw=0.8)
        axis.set_title(f"Spearman {correlation(row['spearman'])} (n = {int(row['n'])})", fontsize=10)
        turned = "\n(turned: lower is worse)" if row["direction"].startswith("lower") else ""  # the sign is as turned
        axis.set(xlabel=for_plot(label(name), 44) + turned, ylabel=loss)
        axis.ticklabel_format(axis="x", scilimits=(-3, 4))
    return figure


@styled
def divergence(table: pd.DataFrame, unit: Unit) -> Figure:
    """KL in both directions, both sides, by step. table: curves.kl. A deviation has one direction."""
    figure, (axes,) = panels(1, height=3.4)
    table = table if unit.nats else table.drop(columns=[c for c in table if str(c).endswith("reverse")])
    for column in table:
        side = str(column).split("_")[0]
        reverse = str(column).endswith("reverse")
        style = "--" if reverse else "-"
        axes.plot(table.index, table[column], style, marker="o", ms=3, color=SIDE[side], label=kl_name(column, unit))
    axes.set(title=furthest(table, unit))
    axes.set(xlabel="optimizer step", ylabel=unit.divergence_axis)
    below(axes, 2)
    return figure


def furthest(table: pd.DataFrame, unit: Unit) -> str:
    """Where the policy ends furthest from its reference: how many nats, on which side, in which direction."""
    last = table.iloc[-1].dropna()
    if last.empty:
        return f"{unit.divergence} over steps"
    worst = f"{number(last.max(), unit.digits)}{unit.nats} per {unit.response}, the largest of {len(last)}"
    return f"At the end {kl_name(last.idxmax(), unit)} is {worst}"


def kl_name(column: object, unit: Unit) -> str:
    """`KL(reference || policy), chosen`: a KL column in words."""
    side, _, key = str(column).partition("_")
    return f"{unit.divergences[key]}, {side}"


@styled
def gradients(table: pd.DataFrame, label: str = "total") -> Figure:
    """Gradient norm before clipping: total (under this label), and by layer group. table: curves.gradients."""
    figure, (axes,) = panels(1, height=3.4)
    for i, column in enumerate(c for c in table if c != "total"):
        axes.plot(table.index, table[column], color=CYCLE[i % len(CYCLE)], lw=1.1, label=for_plot(column, 24))
    axes.plot(table.index, table["total"], color=DARK, lw=2, label=label)
    peak = table["total"].idxmax() if len(table["total"].dropna()) else None
    title = "Gradient norm" if peak is None else f"The gradient is largest at step {peak}: {table['total'].max():.3g}"
    axes.set(title=title, xlabel="optimizer step", ylabel="norm before clipping")
    if (table > 0).to_numpy().all():
        axes.set_yscale("log")
    below(axes, 4)
    return figure


@styled
def ledger(table: pd.DataFrame, pairs: str) -> Figure:
    """Who holds the probability where chosen and rejected first differ. table: mass.named; pairs: which, in words."""
    figure, (axes,) = panels(1, height=3.4)
    gained = [c for c in table if c not in LEDGER]
    parts = [c for c in ("chosen", "rejected", *gained, "other") if c in table]
    colours = {"chosen": CHOSEN, "rejected": REJECTED, "other": "#d5d8de"}
    colours |= {token: CYCLE[(k + 2) % len(CYCLE)] for k, token in enumerate(gained)}
    names = [for_plot(visible(c), 18) if c in gained else "all other tokens" * (c == "other") or c for c in parts]
    axes.stackplot(
        table.index, *(table[c] for c in parts), labels=names, colors=[colours[c] for c in parts], alpha=0.85
    )
    if "argmax" in table:
        axes.plot(table.index, table["argmax"], color=DARK, lw=1.6, ls="--", label="most likely token, whichever it is")
    change = table["chosen"].dropna().iloc[-1] - table["chosen"].dropna().iloc[0] if "chosen" in table else np.nan
    title = f"At the first differing token the chosen one changed by {signed(change)} (mean of {pairs})"
    title = title if change == change else "Probability at the first differing token"
    axes.set(title=title, xlabel="optimizer step", ylabel="probability", ylim=(0, 1))
    below(axes, 4)
    return figure


@styled
def gainers(table: pd.DataFrame, pairs: str) -> Figure:
    """The twelve tokens that gained most probability, summed over these pairs. table: mass.movers."""
    top = table.head(12)[::-1]
    figure, (axes,) = panels(1, height=0.9 + 0.28 * len(top), width=8.0)
    labels = [
        f"{for_plot(t, 24)}  ({p} pairs)" if p > 1 else f"{for_plot(t, 24)}  (1 pair)"
        for t, p in zip(top["token"], top["pairs"])
    ]
    axes.barh(range(len(top)), top["mass"], color=CYCLE[2])
    axes.set_yticks(range(len(top)), labels)
    axes.set(title="Tokens that gained most", xlabel=f"probability gained, summed over {pairs}")
    return figure


@styled
def lines(table: pd.DataFrame, title: str, ylabel: str, colours: dict[str, str] | None = None) -> Figure:
    """Plain lines of probabilities by step, one a column."""
    figure, (axes,) = panels(1, height=3.2)
    for i, column in enumerate(table):
        colour = (colours or {}).get(str(column), CYCLE[i % len(CYCLE)])
        axes.plot(table.index, table[column], "o-", ms=3, color=colour, label=for_plot(column))
    axes.set(title=title, xlabel="optimizer step", ylabel=ylabel)
    axes.set_ylim(0, 1.08 * float(np.nanmax(table.to_numpy())) or 1.0)
    below(axes, 3)
    return figure


def _band(axes: Axes, table: pd.DataFrame, colour: str) -> None:
    for low, high, alpha, name in (("q10", "q90", 0.15, "10–90 %"), ("q25", "q75", 0.3, "25–75 %")):
        axes.fill_between(table["step"], table[low], table[high], color=colour, alpha=alpha, lw=0, label=name)
    axes.plot(table["step"], table["q50"], "o-", ms=3, color=colour, lw=2, label="median")


def _room(axes: Axes, table: pd.DataFrame) -> None:
    """Limits from the probe's bands, so that one far train pair does not flatten the picture."""
    low, high = min(0.0, *table["q10"]), max(0.0, *table["q90"])
    gap = 0.15 * (high - low or 1.0)
    axes.set_ylim(low - gap, high + gap)
