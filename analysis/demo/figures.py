"""Figures of the demo: runs side by side, over seeds."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.demo import tables as demo
from analysis.show.style import CHOSEN, DARK, NEUTRAL, REJECTED, below, panels, styled
from analysis.show.wording import for_plot, signed

CASES = ("#7a5ea8", "#3c8d5a", "#b07d2b", "#4aa3a3", "#8a8f98")  # not the colours of chosen and rejected
PARTS = {
    "chosen": ("chosen answer", CHOSEN),
    "rest": ("same side, other answers", "#8cc0dc"),
    "opposite": ("opposite side", REJECTED),
    "neutral": ("neither side", "#e3c27a"),
    "junk": ("every other token", "#c9ccd2"),
}


@styled
def persona(table: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Left: where the mass is before and at matched margin. Right: change of the opposite side, every run.

    table: one row a run; summary: demo.by_case.
    """
    figure, (left, right) = panels(2, height=4.6, width=11)
    labels = []
    for i, row in enumerate(summary.to_dict("records")):
        for j, moved in enumerate((0, 1)):
            bottom = 0.0
            for part, height in _heights(row, moved).items():
                left.bar(i * 2.6 + j, height, 0.9, bottom=bottom, color=PARTS[part][1], label=PARTS[part][0])
                bottom += height
            labels.append((i * 2.6 + j, "after" if moved else "before"))
        left.text(
            i * 2.6 + 0.5, 1.02, for_plot(demo.case_name(row["case"])).replace(" (", "\n("), ha="center", fontsize=9
        )
    left.set_xticks([x for x, _ in labels], [name for _, name in labels])
    left.set(ylabel="probability", ylim=(0, 1.14))
    left.grid(axis="x", visible=False)
    left.set_title("Where the first token's probability is", pad=12)
    _legend_once(left)
    _points(right, table, summary, "opposite", "change of the opposite side's probability")
    first = summary.iloc[0]
    right.set_title(f"{demo.case_name(first['case'])}: opposite side {signed(first['opposite'])}")
    return figure


@styled
def refusal(table: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Left: refusals of unsafe prompts before and after. Right: refusals against compliance on safe prompts."""
    figure, (left, right) = panels(2, height=4.4, width=11)
    for i, row in enumerate(summary.to_dict("records")):
        seeds = table.loc[table["case"] == row["case"]]
        left.bar(i - 0.2, row["refusal_start"], 0.36, color="#c9ccd2")
        left.bar(i + 0.2, row["refusal"], 0.36, color=CASES[i])
        left.plot([i + 0.2] * len(seeds), seeds["refusal"], "o", color=DARK, ms=4, mfc="white")
        right.plot(seeds["refusal"], seeds["comply"], "o", color=CASES[i], ms=7, label=demo.case_name(row["case"]))
    start = table[["refusal_start", "comply_start"]].astype(float)
    right.plot(start["refusal_start"], start["comply_start"], "+", color=DARK, ms=9, label="before training")
    names = [for_plot(demo.case_name(c)).replace(", ", "\n").replace("lowest", "\nlowest") for c in summary["case"]]
    left.set_xticks(range(len(names)), names, fontsize=8.5)
    left.set(ylabel="refusals of unsafe prompts\n(grey: before, colour: after, dots: seeds)", ylim=(0, 1))
    first = summary.iloc[0]
    left.set_title(f"{demo.case_name(first['case'])}: {first['refusal_start']:.2f} to {first['refusal']:.2f}")
    left.grid(axis="x", visible=False)
    right.set(xlabel="refusals of unsafe prompts", ylabel="compliance on safe prompts", xlim=(0, 1), ylim=(0, 1))
    right.set_title("Better is up and to the right")
    right.legend(loc="lower left", fontsize=8.5)
    return figure


@styled
def geometry(table: pd.DataFrame, shape: pd.DataFrame) -> Figure:
    """Cosine of the two answers' unembeddings against the change of the opposite side, one point a run."""
    figure, (axes,) = panels(1, height=3.8, width=8)
    joined = table.merge(shape, on=["seed", "case"])
    for i, case in enumerate(c for c in demo.PERSONA if c in set(joined["case"])):
        rows = joined.loc[joined["case"] == case]
        axes.plot(rows["cosine"], rows["opposite"], "o", color=CASES[i], alpha=0.8, label=demo.case_name(case))
    axes.axhline(0, color=DARK, lw=0.8)
    axes.set_title("The more alike the two answers, the more the opposite side gains")
    axes.set(xlabel="cosine of the two answers' unembeddings (centred)", ylabel="change of the opposite side")
    below(axes, 3)
    return figure


@styled
def kinds(table: pd.DataFrame, labels: dict[str, str]) -> Figure:
    """AUROC of each measure for the pair kind, one point a seed."""
    figure, (axes,) = panels(1, height=0.9 + 0.42 * len(labels), width=8)
    for i, name in enumerate(reversed(labels)):
        values = table.loc[table["measure"] == name, "auroc"]
        axes.plot(values, [i] * len(values), "o", color=CHOSEN, alpha=0.8)
        axes.plot([values.mean()], [i], "|", color=DARK, ms=16, mew=2)
    axes.axvline(0.5, color=NEUTRAL, ls="--", lw=1)
    axes.set_yticks(range(len(labels)), [for_plot(v, 52) for v in reversed(labels.values())])
    axes.set(xlim=(0, 1.02), ylim=(-0.6, len(labels) - 0.4), xlabel="AUROC: two refusals against mixed pairs")
    axes.set_title("Dots: seeds. Bar: mean. Dashed: chance")
    return figure


def _heights(row: dict, moved: int) -> dict[str, float]:
    now = {p: row[f"{p}_start"] + moved * row[p] for p in ("chosen", "own", "opposite", "neutral", "junk")}
    parts = {"chosen": now["chosen"], "rest": now["own"] - now["chosen"], **{p: now[p] for p in list(PARTS)[2:]}}
    return {p: max(0.0, float(np.nan_to_num(v))) for p, v in parts.items()}


def _points(axes: Axes, table: pd.DataFrame, summary: pd.DataFrame, name: str, label: str) -> None:
    rng = np.random.default_rng(0)
    for i, row in enumerate(summary.to_dict("records")):
        rows = table.loc[table["case"] == row["case"]]
        jitter = i + rng.uniform(-0.13, 0.13, len(rows))
        axes.plot(jitter, rows[name], "o", color=CASES[i], alpha=0.6, ms=5)
        axes.plot([i - 0.25, i + 0.25], [row[name]] * 2, color=DARK, lw=2)
    names = [for_plot(demo.case_name(c)).replace(" (", "\n(") for c in summary["case"]]
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.axhline(0, color=DARK, lw=0.8)
    axes.set(ylabel=label, xlim=(-0.6, len(names) - 0.4))


def _legend_once(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles))
    axes.legend(once.values(), once.keys(), loc="upper center", bbox_to_anchor=(0.5, -0.08), ncol=3, fontsize=8.5)
