"""Figures and tables as files: what is drawn, and that it is only done where a folder is named."""

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest

from analysis.show import files, page, style
from analysis.show.page import Cell


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(files.FOLDER, str(tmp_path / "figures"))
    monkeypatch.setattr(files, "_number", itertools.count(1))
    return tmp_path / "figures"


def _figure():
    figure, (left, right) = style.panels(2)
    left.set_title("Left $5$")
    left.plot([0, 5], [1.5, 2.5], label="chosen")
    left.axhline(0)
    left.scatter([3], [4], label="pairs")
    right.bar(["a", "b"], [2.0, -1.0])
    right.fill_between([0, 1], [0, 0], [1, 2])
    return figure


def test_the_data_of_a_figure_are_what_it_draws():
    found = files.drawn(_figure())
    line = found.loc[found["kind"] == "line"]
    assert line[["panel", "series", "x", "y"]].values.tolist() == [
        ["Left $5$", "chosen", 0, 1.5], ["Left $5$", "chosen", 5, 2.5]
    ]  # fmt: skip
    assert found.loc[found["kind"] == "points", ["x", "y"]].values.tolist() == [[3, 4]]
    assert found.loc[found["kind"] == "bars", "y"].tolist() == [2.0, -1.0]
    assert found.loc[found["kind"] == "area", "y"].max() == 2
    assert found["value"].isna().all()


def test_lying_bars_and_cells():
    figure, (left, right) = style.panels(2)
    left.barh([0, 1], [0.5, 0.25])
    right.imshow(np.array([[1.0, 2.0], [3.0, np.nan]]))
    found = files.drawn(figure)
    assert found.loc[found["kind"] == "bars", ["x", "y"]].values.tolist() == [[0.5, 0], [0.25, 1]]
    cells = found.loc[found["kind"] == "cells", ["x", "y", "value"]].values.tolist()
    assert cells[:3] == [[0, 0, 1.0], [1, 0, 2.0], [0, 1, 3.0]]
    assert math.isnan(cells[3][2])


def test_a_picture_leaves_its_files(folder):
    page.picture(_figure(), "KL over steps <b> of $5$")
    names = sorted(p.name for p in folder.iterdir())
    assert names == [f"01-kl-over-steps-b-of-5.{kind}" for kind in ("csv", "pdf", "svg", "txt")]
    assert (folder / names[3]).read_text() == "KL over steps <b> of $5$\n"
    assert (folder / names[1]).read_bytes().startswith(b"%PDF")
    first = (folder / names[2]).read_bytes()
    page.picture(_figure(), "KL over steps <b> of $5$")
    assert (folder / names[2].replace("01", "02")).read_bytes() == first


def test_tables_leave_numbers_and_words(folder):
    nasty = "50 % of $x_1$ & <b>"
    frame = pd.DataFrame({"what": [nasty], "change": [-1.23456]})
    page.table(frame, {"change": lambda v: f"−{abs(v):.1f}"}, {"change": "change & more"})
    assert pd.read_csv(folder / "01-table.csv").to_dict("records") == [{"what": nasty, "change": -1.23456}]
    tex = (folder / "01-table.tex").read_text()
    assert r"50 \% of \$x\_1\$ \& \textless{}b\textgreater{} & $-$1.2 \\" in tex
    assert r"change \& more" in tex
    page.sortable({"pair": "", "loss": "nats"}, [[Cell("p1"), Cell("−2.00", -2.0)]], name="pairs")
    assert pd.read_csv(folder / "02-pairs.csv").to_dict("records") == [{"pair": "p1", "loss": -2.0}]
    assert r"p1 & $-$2.00 \\" in (folder / "02-pairs.tex").read_text()


def test_a_latex_table_says_what_was_given():
    """Read back by undoing every command that LaTeX knows; nothing else of a cell may be one."""
    given = [
        "a_b%c&d#e$f{g}h~i^j\\k",
        "[0.1, 0.2]",
        "*",
        "<b>|x|",
        "né 日本 😀",
        "two\n\nlines\x00",
        r"\input{x} % no",
        "",
    ]
    tex = files.tabular(pd.DataFrame({"[what] %": given, "*n": "1"}))
    head, *rows = [line.removesuffix(r" \\") for line in tex.splitlines() if line.endswith(r"\\")]
    cells = [_undone(row.partition(" & 1")[0].strip()) for row in rows]
    assert cells == [" ".join(text.replace("\0", "").split()) for text in given]
    assert [_undone(cell) for cell in head.split(" & ")] == ["[what] %", "*n"]


def _undone(cell: str) -> str:
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^"}
    names |= {"textless": "<", "textgreater": ">", "textbar": "|"}
    known = r"\\([a-z]+)\{\}|\\(.)|^(\{\})(?=[\[*])|([^\\&%$#_{}~^<>|])"
    parts = re.findall(known, cell)
    assert re.sub(known, "", cell) == "", cell
    return "".join(names[name] if name else sign or letter for name, sign, _, letter in parts)


def test_nothing_is_written_where_no_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(files.FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    page.table(pd.DataFrame({"a": [1]}))
    page.picture(_figure(), "nothing")
    assert list(tmp_path.iterdir()) == []
