"""Figures of the board: entries side by side. Dots are seeds, the line is their range, the filled mark their mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.show.style import CHOSEN, DARK, NEUTRAL, REJECTED, panels, styled
from analysis.show.units import Unit
from analysis.show.wording import for_plot
from analysis.tables.intervals import finite

# twelve colours that stay apart; from the thirteenth objective on they come again with another mark
COLOURS = (
    *("#1f77a4", "#d1495b", "#3c8d5a", "#e08e1b", "#7a5ea8", "#2aa6a6"),
    *("#8c564b", "#c46ba0", "#7f7f1a", "#17375e", "#6b717c", "#9a1f6a"),
)
MARKS = ("o", "s", "^", "D", "v", "P", "X")
FAR = 10.0
TICKS = [sign * tick for sign in (-1, 1) for tick in (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)]
ROOM = 0.07  # of the panel's height that a label beside the frontier takes


@dataclass(frozen=True)
class Dots:
    """What one panel of a dot plot shows: a column of the runs' table, its colour, and its name in the legend."""

    name: str
    colour: str
    label: str


def sides(split: str) -> list[Dots]:
    """The log-ratios of both sides on one split."""
    return [Dots(f"{split}_chosen", CHOSEN, "chosen"), Dots(f"{split}_rejected", REJECTED, "rejected")]


@styled
def dots(
    runs: pd.DataFrame,
    entries: Sequence[tuple[str, float]],
    names: Sequence[str],
    shown: dict[str, list[Dots]],
    *,
    scale: str = "linear",
    at: float | None = 0.0,
) -> Figure:
    """One line an entry, one panel a key of `shown` (its text names the axis). at: a reference value, drawn dashed."""
    figure, axes = panels(len(shown), height=1.3 + 0.3 * len(entries), width=11)
    for axis, (title, columns) in zip(axes, shown.items()):
        for k, column in enumerate(columns):
            shift = 0.13 * (2 * k - len(columns) + 1)
            for i, entry in enumerate(entries):
                _seeds(axis, finite(_of(runs, entry)[column.name]), i + shift, column.colour)
        if at is not None:
            axis.axvline(at, color=DARK, lw=0.9, ls="--")
        _scale(axis, scale)
        axis.set(xlabel=title, ylim=(len(entries) - 0.5, -0.5))
        axis.set_yticks(range(len(entries)), [for_plot(n) for n in names] if axis is axes[0] else [])
        if len(columns) > 1:
            handles = [Line2D([], [], marker="o", ls="", color=c.colour, label=c.label) for c in columns]
            axis.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2, fontsize=9)
    return figure


@styled
def trajectories(paths: pd.DataFrame, labels: Sequence[str], ylabel: str) -> Figure:
    """Mean chosen log-ratio over steps, one panel an objective: bold its mean over seeds (one line a learning rate,
    darker is larger), thin each seed, grey all other objectives. paths: label, rate, seed, step, chosen."""
    rows = -(-len(labels) // 4)
    columns = -(-len(labels) // rows)
    figure, axes = panels(len(labels), height=2.35 if rows > 1 else 3.2, width=11, rows=rows)
    means = paths.pivot_table(index=["label", "rate", "step"], values="chosen", aggfunc="mean").reset_index()
    rates = sorted(set(paths["rate"]))
    values = finite([0.0, *paths["chosen"]])
    low, high = 1.08 * float(values.min()) - 0.05, 1.08 * float(values.max()) + 0.05
    strengths = [0.25 + 0.75 * (k + 1) / len(rates) for k in range(len(rates))]
    for i, (axis, label) in enumerate(zip(axes, labels)):
        for _, line in means.loc[means["label"] != label].groupby(["label", "rate"]):
            axis.plot(line["step"], line["chosen"], color="#d9dce1", lw=0.9)
        for strength, rate in zip(strengths, rates):
            for _, line in _of(paths, (label, rate)).groupby("seed"):
                axis.plot(line["step"], line["chosen"], color=CHOSEN, lw=0.8, alpha=0.35 * strength)
            line = _of(means, (label, rate))
            axis.plot(line["step"], line["chosen"], color=CHOSEN, lw=2.2, alpha=strength)
        axis.axhline(0, color=DARK, lw=0.8)
        axis.set_title(for_plot(label, 30), fontsize=9.5)
        axis.set_ylim(low, high)
        _scale(axis, "far", "y")
        if i % columns:
            axis.tick_params(labelleft=False)
    if len(rates) > 1:
        lines = [Line2D([], [], color=CHOSEN, lw=2.2, alpha=a, label=f"{r:g}") for r, a in zip(rates, strengths)]
        figure.legend(handles=lines, title="learning rate", loc="outside upper right", ncol=len(rates), fontsize=9)
    figure.supxlabel("optimizer step", fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    return figure


@styled
def frontier(
    runs: pd.DataFrame, labels: Sequence[str], heights: dict[str, str], starts: dict[str, float], unit: Unit
) -> Figure:
    """KL against accuracy: one mark an objective and learning rate (larger mark, larger rate; a thin line joins
    them), crosses reach over the range of seeds. heights: column -> name of each panel's y axis; starts: its value
    before training, drawn dashed."""
    figure, axes = panels(len(heights), height=4.2, width=11, rows=len(heights))
    rates = sorted(set(runs["rate"]))
    for axis, (name, words) in zip(axes, heights.items()):
        ends = {}
        for i, label in enumerate(labels):
            colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
            means = []
            for k, rate in enumerate(rates):
                rows = _of(runs, (label, rate)).dropna(subset=["eval_kl", name])
                if len(rows):
                    means.append(
                        _cross(axis, finite(rows["eval_kl"]), finite(rows[name]), colour, mark, 6 + 4 * k / len(rates))
                    )
            if means:
                axis.plot(*zip(*means), color=colour, lw=0.9, alpha=0.7)
                ends[label] = (*means[-1], colour)
        if np.isfinite(starts.get(name, np.nan)):
            axis.axhline(starts[name], color=NEUTRAL, lw=1, ls="--")
        _scale(axis, "log")
        axis.set(ylabel=words, xlabel=_per(unit))
        _beside(axis, ends)
    return figure


def _per(unit: Unit) -> str:
    return f"{unit.divergences['kl']}{',' if unit.nats else ''}{unit.nats} per held-out chosen {unit.response}"


def _cross(axis: Axes, x: np.ndarray, y: np.ndarray, colour: str, mark: str, size: float) -> tuple[float, float]:
    """A mean with the range of its seeds in both directions; returns the mean."""
    centre = (float(x.mean()), float(y.mean()))
    axis.plot([x.min(), x.max()], [centre[1]] * 2, color=colour, lw=1, alpha=0.6)
    axis.plot([centre[0]] * 2, [y.min(), y.max()], color=colour, lw=1, alpha=0.6)
    axis.plot(*centre, mark, color=colour, ms=size, mec="white", mew=0.8)
    return centre


def _beside(axis: Axes, ends: dict[str, tuple[float, float, str]]) -> None:
    """Names in a column on the right, each joined to its mark, spread so that none covers another."""
    low, high = axis.get_ylim()
    order = sorted(ends, key=lambda label: ends[label][1])
    wanted = np.array([(ends[label][1] - low) / (high - low) for label in order])
    for label, place in zip(order, spaced(wanted, ROOM)):
        x, y, colour = ends[label]
        axis.annotate(
            for_plot(label), (x, y), (1.03, float(place)), textcoords="axes fraction", va="center", fontsize=9,
            color=colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0.6, "shrinkB": 4},
        )  # fmt: skip
    axis.set_ylim(low, high)


def spaced(wanted: np.ndarray, room: float) -> np.ndarray:
    """Sorted places in [0, 1] moved apart to at least `room`, staying near where they were wanted."""
    n = len(wanted)
    room = min(room, 1 / max(n - 1, 1))
    steps = room * np.arange(n)
    places = np.maximum.accumulate(wanted - steps) + steps  # pushed up from below ...
    return np.minimum(places, 1 - room * np.arange(n)[::-1])  # ... and back under the top


def _seeds(axis: Axes, values: np.ndarray, height: float, colour: str) -> None:
    if len(values):
        axis.plot([values.min(), values.max()], [height] * 2, color=colour, lw=1.4, alpha=0.5)
        axis.plot(values, [height] * len(values), "o", color=colour, ms=3.5, alpha=0.55, mfc="white", mew=0.9)
        axis.plot([values.mean()], [height], "o", color=colour, ms=6)


def _scale(axis: Axes, scale: str, which: str = "x") -> None:
    """far: linear, but logarithmic beyond one nat where the data reach farther than 10. Ticks are plain numbers."""
    low, high = axis.get_xlim() if which == "x" else axis.get_ylim()
    if scale == "far":
        scale = "symlog" if max(-low, high) > FAR else "linear"
    settings = {"linthresh": 1.0, "linscale": 1.0} if scale == "symlog" else {}
    (axis.set_xscale if which == "x" else axis.set_yscale)(scale, **settings)
    place = axis.xaxis if which == "x" else axis.yaxis
    if scale == "symlog":
        place.set_major_locator(FixedLocator(TICKS))
        place.set_minor_locator(NullLocator())
    if scale != "linear":
        place.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))


def _of(table: pd.DataFrame, entry: tuple[str, float]) -> pd.DataFrame:
    return table.loc[(table["label"] == entry[0]) & (table["rate"] == entry[1])]
