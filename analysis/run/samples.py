"""What the run page says of a denoiser: the samples of the worst pairs beside their error by time, and that of all."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.run import verdict
from analysis.show import page, units
from analysis.show.page import Block, Cell
from analysis.show.style import DARK, NEUTRAL, SIDE, below, panels, styled
from analysis.show.wording import clip, count, number, signed
from analysis.tables import draws, runs
from analysis.tables.runs import Pictures
from diagnostics.runlog import RunLog

ROWS = 1000  # pairs in the table of a page
OPEN = 12  # a table of more pairs is folded
ANCHORS = {"probe": "pair", "eval": "heldout-pair"}


def by_time(run: RunLog) -> Block:
    """The denoising error of both sides by time at the start and at the end, mean of the probe pairs."""
    if units.of(run) is not units.ERRORS:
        return page.EMPTY
    table = draws.ends(run)
    if table.empty:
        return page.missing("Error by time", "It needs the draws of the first and of a later step (`tokens: ends`).")
    chosen = table.loc[table["side"] == "chosen"]
    risen = int((chosen["change"] > 0).sum())
    most = chosen.loc[chosen["change"].abs().idxmax()]
    title = f"The chosen error rose at {risen} of {len(chosen)} times; most it moved at {most['time']:.0f}, by "
    title += _percents(most["change"])
    shown = table.drop(columns=["low", "high"]).assign(change=[_percents(v) for v in table["change"]])
    forms = {"time": lambda t: f"{t:.0f}", "start": number, "end": number}
    heads = {"start": "error at the start", "end": "error at the end"}
    made = page.fold("Numbers of every time", page.table(shown, forms, heads))
    return page.stack(page.picture(errors(table, title), title), made)


@styled
def errors(table: pd.DataFrame, title: str = "") -> Figure:
    """Both sides' error by time at the start and at the end, and its change in percent with the 95 % interval of the
    mean over pairs. table: draws.ends."""
    figure, (left, right) = panels(2, height=3.4)
    for side, mine in table.groupby("side"):
        colour = SIDE[str(side)]
        left.plot(mine["time"], mine["start"], "o--", ms=3, lw=1.1, color=colour, mfc="white", label=f"{side}, start")
        left.plot(mine["time"], mine["end"], "o-", ms=3, lw=1.6, color=colour, label=f"{side}, end")
        right.plot(mine["time"], mine["change"], "o-", ms=3, color=colour, label=str(side))
        right.fill_between(mine["time"], mine["low"], mine["high"], color=colour, alpha=0.15, lw=0)
    right.axhline(0, color=DARK, lw=0.8)
    spread = table[["start", "end"]].to_numpy()
    if spread.min() > 0 and spread.max() > 5 * spread.min():
        left.set_yscale("log")
    left.set(ylabel="denoising error", xlabel="time (0: no noise)")
    right.set(ylabel="change of the error (%)", xlabel="time (0: no noise)")
    for axis in (left, right):
        axis.tick_params(which="minor", color=NEUTRAL)
        below(axis, 2)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def pairs(
    run: RunLog, table: pd.DataFrame, other: pd.DataFrame, texts: pd.DataFrame, worst: int, first: str, *, text: bool
) -> Block:
    """The cards of the worst pairs, and the tables. table, other: pair_table.of_run of the split `first` and of the
    other. text: False leaves texts and pictures out."""
    said = [] if worst else [page.note(f"The chosen error of no {verdict.PAIRS[first]} rose.")]
    shown = table.head(worst)
    pictures = runs.pictures(run.path, shown["pair_id"]) if text else Pictures()
    cards = [_card(run, row, texts, pictures, first) for row in shown.to_dict("records")]
    second = "eval" if first == "probe" else "probe"
    return page.stack(
        *said, *cards, *page.not_shown(pictures), _table(table, texts, first), _table(other, texts, second)
    )


def _card(run: RunLog, row: dict[Any, Any], texts: pd.DataFrame, pictures: Pictures, split: str) -> Block:
    """A pair: what it is told, its two samples, and their errors by time."""
    name, prompt = row["pair_id"], str(texts["prompt"].get(row["pair_id"], ""))
    changes = f"chosen {_told(row['chosen'])}, rejected {_told(row['rejected'])}"
    head = f"{_place(row)}: change of the denoising error: {changes}"
    own = pictures.found.get(name, [])
    shown = [page.frames(png, clip(f"{words}: {prompt}" if prompt else words, 160)) for words, png in own]
    side_by_side = [page.beside(*shown)] if shown else []
    table = draws.ends(run, split, [name])
    alt = f"Denoising errors of pair {name} by time, at the start and at the end"
    figure = [page.picture(errors(table), alt)] if len(table) else []
    told = [page.text("prompt", prompt)] if prompt else []
    return page.card(head, *told, *side_by_side, *figure)


def _table(table: pd.DataFrame, texts: pd.DataFrame, split: str) -> Block:
    if table.empty:
        return page.EMPTY
    rows = [_row(row, texts, ANCHORS[split]) for row in table.head(ROWS).to_dict("records")]
    return every(_HEADS, rows, len(table), split, "whose chosen error rose less")


def every(heads: dict[str, str], rows: list[list[Cell]], n: int, split: str, left_out: str) -> Block:
    """The table of all n pairs of a split, folded where it is long. rows: the first ROWS; left_out: which those beyond
    them are."""
    made = page.sortable(heads, rows, name="pairs", filter_by="outcome")
    left = f"{n - ROWS:,} more pairs, {left_out}, stand in the run's folder."
    said = [page.note(left, "quiet")] if n > ROWS else []
    head, anchor = f"All {count(n, verdict.PAIRS[split])}", {"probe": "pairs", "eval": "heldout"}[split]
    if n > OPEN or split == "eval":
        return page.fold(head, made, *said, anchor=anchor)
    return page.stack(page.heading(head, anchor), made, *said)


_HEADS = {
    "pair": "", "outcome": "", "chosen error": "change since the start",
    "rejected error": "change since the start",
    "deviation": "mean squared difference of both models' outputs on the chosen sample",
}  # fmt: skip


def _row(row: dict[Any, Any], texts: pd.DataFrame, kind: str) -> list[Cell]:
    where = f"row {row['source_row']}" if row["source_row"] >= 0 else ""
    told = str(texts["prompt"].get(row["pair_id"], ""))
    body = page.fold("read", page.text("prompt", told, 600)) if told else page.EMPTY
    return [
        Cell(str(row["pair_id"]), row["source_row"], f"{kind}-{row['pair_id']}", where, body),
        Cell(units.ERRORS.outcome(row["outcome"]) if isinstance(row["outcome"], str) else "not measured"),
        *(Cell(_told(row[side]), -row[side]) for side in runs.SIDES),
        Cell(number(row["kl"], units.ERRORS.digits), row["kl"]),
    ]


def _percents(change: float) -> str:
    return f"{signed(change, 0 if abs(change) >= 100 else 1)} %"


def _told(change: float) -> str:
    """The change of an error, from that of its likelihood."""
    return signed(units.ERRORS.shown(change), units.ERRORS.digits)


def _place(row: dict[Any, Any]) -> str:
    source = f", source row {row['source_row']}" if row["source_row"] >= 0 else ""
    return f"Pair {row['pair_id']}{source}"
