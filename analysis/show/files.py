"""Figures and tables of a page as files of their own, for a paper: where $CHESBOARD_FIGURES names a folder."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any
from unicodedata import category

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import Collection, LineCollection, PathCollection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

FOLDER = "CHESBOARD_FIGURES"
_number = count(1)  # a page is made by a process of its own
# the same file each time; letters that stay letters
_PLAIN: dict[Any, Any] = {"svg.hashsalt": "chesboard", "pdf.fonttype": 42}


def keep_figure(figure: Figure, caption: str) -> None:
    """Write NN-<caption>.svg, .pdf, .txt (the caption) and .csv (what is drawn, see `drawn`)."""
    place = _place(caption)
    if place is None:
        return
    with matplotlib.rc_context(_PLAIN):
        figure.savefig(place.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(place.with_suffix(".pdf"), metadata={"CreationDate": None})
    place.with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")
    drawn(figure).to_csv(place.with_suffix(".csv"), index=False)


def keep_table(frame: pd.DataFrame, shown: pd.DataFrame) -> None:
    """Write NN-table.csv (frame) and .tex (shown: the words on the page)."""
    place = _place("table")
    if place is None or frame.empty:
        return
    frame.to_csv(place.with_suffix(".csv"), index=False)
    place.with_suffix(".tex").write_text(tabular(shown), encoding="utf-8")


def keep_cells(heads: Sequence[str], rows: Sequence[Sequence[Any]], name: str) -> None:
    """Write NN-<name>.csv of a sortable table (its numbers, and the words where a cell has none) and .tex (its
    words)."""
    place = _place(name)
    if place is None:
        return
    cells = [[cell.words if cell.value is None else cell.value for cell in row] for row in rows]
    pd.DataFrame(cells, columns=list(heads)).to_csv(place.with_suffix(".csv"), index=False)
    words = pd.DataFrame([[cell.words for cell in row] for row in rows], columns=list(heads))
    place.with_suffix(".tex").write_text(tabular(words), encoding="utf-8")


def tabular(words: pd.DataFrame) -> str:
    """A table as LaTeX with booktabs' rules. Signs of ours become LaTeX's; letters of other scripts stay as they are,
    which XeLaTeX and LuaLaTeX set."""
    safe = [[latex(cell) for cell in row] for row in words.itertuples(index=False, name=None)]
    return pd.DataFrame(safe, columns=[latex(head) for head in words.columns]).to_latex(index=False, escape=False)


def latex(text: object) -> str:
    """Text as LaTeX prints it, on one line. A cell that begins with [ or * would be an option of the rule or the line
    end before it."""
    line = " ".join(str(text).split())
    said = "".join(_LATEX.get(letter, letter) for letter in line if category(letter) != "Cc")
    return f"{{}}{said}" if said[:1] in ("[", "*") else said


_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "“": "``", "”": "''", "–": "--", "…": r"\ldots{}",
    "−": "$-$", "→": r"$\to$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\le$", "≥": r"$\ge$",
    "‖": r"$\Vert$", "√": r"$\surd$", "∞": r"$\infty$", "∝": r"$\propto$", "∅": r"$\emptyset$", "✔": r"$\surd$",
    "✖": r"$\times$", "⏎": r"$\hookleftarrow$", "⇥": r"$\mapsto$", "β": r"$\beta$", "π": r"$\pi$", "ρ": r"$\rho$",
    "₀": "$_0$", "₁": "$_1$",
}  # fmt: skip


def drawn(figure: Figure) -> pd.DataFrame:
    """The numbers behind a figure: panel (its title, or its number), kind (line, points, interval, area, bars, cells),
    series (as in the legend), x and y in the panel's own units, and the value of a cell; an area is its outline."""
    rows = [
        (axes.get_title(loc="left") or axes.get_title() or str(i), kind, series, *point)
        for i, axes in enumerate(figure.axes, 1)
        for kind, series, points in _series(axes)
        for point in points
    ]
    return pd.DataFrame([(*row, math.nan)[:6] for row in rows], columns=["panel", "kind", "series", "x", "y", "value"])


def _series(axes: Axes) -> Iterator[tuple[str, str, Any]]:
    for line in axes.lines:
        if line.get_transform() == axes.transData:  # no rules across the panel
            yield "line", _label(line), np.column_stack([line.get_xdata(orig=False), line.get_ydata(orig=False)])
    for found in axes.collections:
        yield from _collected(found)
    for bars in axes.containers:
        if isinstance(bars, BarContainer):
            yield "bars", _label(bars), [_end(bar, bars.orientation == "horizontal") for bar in bars]
    for image in axes.images:
        cells = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
        yield "cells", _label(image), [(x, y, cells[y, x]) for y, x in np.ndindex(*cells.shape[:2])]


def _collected(found: Collection) -> Iterator[tuple[str, str, Any]]:
    if isinstance(found, PathCollection):
        yield "points", _label(found), np.ma.filled(np.ma.asarray(found.get_offsets(), dtype=float), np.nan)
        return
    kind = "interval" if isinstance(found, LineCollection) else "area"
    for path in found.get_paths():
        yield kind, _label(found), path.vertices


def _end(bar: Any, lying: bool) -> tuple[float, float]:
    """Where a bar ends, in the middle of its width."""
    if lying:
        return bar.get_x() + bar.get_width(), bar.get_y() + bar.get_height() / 2
    return bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height()


def _label(artist: Any) -> str:
    label = str(artist.get_label() or "")
    return "" if label.startswith("_") else label


def _place(name: str) -> Path | None:
    """The file without its suffix; None where no files are wanted."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].rstrip("-")
    return Path(folder) / f"{next(_number):02d}-{stem or 'figure'}"
