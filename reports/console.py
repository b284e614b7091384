"""What the commands print: short tables for a terminal. Untrusted text is printed as plain text, never as markup."""

import inspect
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from math import inf, isnan
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from analysis import flags, trust
from analysis.predictors import Scored
from diagnostics import measures
from diagnostics.docstrings import papers, sources, summary
from diagnostics.errors import printable
from diagnostics.flagging import FURTHER, prone
from reports.tables import add as _add
from reports.tables import table as _table
from trainers import objectives
from trainers.card import Card, Push, card

SHOWN = 10  # rows of the flag table
CARD_NOTES = (
    "d_w = -dL/dz_w and d_l = dL/dz_l, z a summed log-prob in nats: above 0, chosen is raised and rejected lowered. "
    "To first order in a small step, chosen rises only if d_w / d_l > <s_w, s_l> / |s_w|^2, and rejected falls only if "
    "d_w / d_l < |s_l|^2 / <s_w, s_l>; s is the gradient of z in the weights, <s_w, s_l> > 0 (arXiv:2604.18239). "
    "A push on X is -dL/dX: above 0 raises X. A dash is no number.",
    "One standard pair, nothing sampled: 10 tokens a side, reference log-prob -1 a token, margins split evenly, v the "
    "rejected answer's log-ratio. All else is neutral: KL 0, every token in one phrase, a batch of equal pairs.",
)
_NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def show_lines(lines: Sequence[str]) -> None:
    """Sentences, one a line."""
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def show_counts(counts: pd.DataFrame, path: Path) -> None:
    """The audit: how many rows each code concerns, and where to look."""
    table = _table("code", "kind", "rows", "first rows", "meaning")
    for row in counts.to_dict("records"):
        _add(table, row["code"], row["kind"], row["n"], row["first_rows"], row["meaning"])
    console = Console()
    if len(counts):
        console.print(table)
    console.print(f"every row and its reason: {path}", markup=False, highlight=False)


def show_flagged(scores: pd.DataFrame, by: str, out: Path) -> None:
    """The most displacement-prone pairs and what was written."""
    done = scores.query("status == 'scored'")
    table = _table("rank", "pair_id", "source row", by, "chosen tokens", "rejected tokens", "flagged")
    for row in done.sort_values("rank").head(SHOWN).to_dict("records"):
        rank, *lengths = (_whole(row[name]) for name in ("rank", "chosen_length", "rejected_length"))
        mark = "yes" if row["flagged"] else ""
        _add(table, rank, row["pair_id"], row["source_row"], _number(row[by]), *lengths, mark)
    console = Console()
    console.print(table)
    console.print(
        f"{len(done)} pairs scored, {len(scores) - len(done)} skipped, "
        f"{done['flagged'].tolist().count(True)} flagged by {by} (the {prone(by)} values are most prone).",
        highlight=False,
    )
    if unranked := done["rank"].isna().tolist().count(True):
        console.print(f"{by} is no number for {unranked} of them: they have no rank.", highlight=False)
    for line in flags.forecast_words(done):
        console.print(line, highlight=False)
    console.print(
        f"all scores: {out / 'scores.parquet'}   pages: chesboard report {out}", markup=False, highlight=False
    )


def show_scorecard(found: Scored) -> None:
    """Every predictor with its intervals, then the sentence that says which to trust."""
    heads = ("Spearman, nats lost", "AUROC, fell", "AP", "top 10 %", "lift")
    table = _table("measure", "n", *heads, title="predictors; 95 % intervals; ↑ high is worse, ↓ low is worse")
    table.columns[0].no_wrap, table.box = True, SIMPLE
    plain = found.card.loc[found.card["given"] == ""].sort_values("spearman", ascending=False)
    for row in plain.to_dict("records"):
        arrow = row["direction"].replace("higher", "↑").replace("lower", "↓")
        short = [_number(round(row[name], 2)) for name in ("average_precision", "precision", "lift")]
        _add(table, f"{row['measure']} {arrow}", row["n"], _estimate(row, "spearman"), _estimate(row, "auroc"), *short)
    console = Console()
    console.print(table)
    for line in (*found.says, trust.judge(found.card).meaning):
        console.print(printable(line), markup=False, highlight=False)


def _estimate(row: Mapping[Hashable, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return _number(round(row[name], 2)) + ("" if isnan(low) else f" [{low:.2f}, {high:.2f}]")


def show_papers(rows: Sequence[Sequence[str]]) -> None:
    """The paper analyses there are."""
    table = _table("analysis", "what it reruns", "paper", "claims", "--data at toy scale")
    for row in rows:
        _add(table, *row)
    Console().print(table)


def show_ledger(page: Path, only: tuple[str, str] | None) -> None:
    """The claims of one analysis, by name and scale, or how many of all hold, and where the pages are."""
    ledger = json.loads(page.with_name("ledger.json").read_text(encoding="utf-8"))
    console = Console()
    heads = ("verdict", "measured (95 % interval)", "claim")
    table = _table(*heads)
    for column in table.columns[:2]:
        column.no_wrap = True
    mine = [row for row in ledger["claims"] if only == (row["analysis"], row["scale"])]
    for row in mine:
        _add(table, *(row[name] for name in heads))
    if only:
        console.print(table)
    console.print(f"all analyses in {page.parent}: {ledger['summary']}", markup=False, highlight=False, soft_wrap=True)
    shown = f"page: {page.with_name(mine[0]['page'])}   " if mine else ""
    console.print(f"{shown}ledger of all claims: {page}", markup=False, highlight=False, soft_wrap=True)


def show_list(what: str | None = None, name: str | None = None) -> None:
    """The tables of objectives, measures and notebooks, one of them, or what one name in it stands for."""
    kinds = ("objectives", "measures", "notebooks")
    if what is not None and what not in kinds:
        raise measures.unknown("list", what, kinds)
    if name is None:
        _show_tables(kinds if what is None else (what,))
    elif what == "objectives":
        show_card(card(name))
    else:
        _show_text(*(_measure_text(name) if what == "measures" else _notebook_text(name)))


def _show_tables(kinds: Sequence[str]) -> None:
    """From the docstrings and the notebooks' first cells."""
    console = Console()
    for kind in kinds:
        if kind == "objectives":
            console.print(_objective_table())
            continue
        table = _table(kind, "what it is", "source")
        for row in _measures() if kind == "measures" else _notebooks():
            _add(table, *row)
        console.print(table)
        if kind == "measures":
            console.print(_further_table())
    if "objectives" in kinds:
        console.print("one objective's card: chesboard list objectives NAME", highlight=False)


def _further_table() -> Table:
    """The columns that only `chesboard flag` measures, and which of their values it flags."""
    table = _table("flag --by", "what it is", "flagged")
    for name, column in FURTHER.items():
        _add(table, name, column.meaning, column.flagged)
    table.caption = "flag --by takes these, and CHES, LN-CHES, last-hidden and edit similarity, flagged highest"
    return table


def _objective_table() -> Table:
    """Every objective: what it is, what it reads, how sure its formula is, its paper."""
    table = _table("objective", "what it is", "needs", "formula", "paper")
    for name in objectives.names():
        function = objectives.load(name)
        reads = ", ".join([*objectives.needs(name), *(f"column {c}" for c in objectives.columns(name))])
        said = re.split(r"\. (?:arXiv|Source)", summary(function.__doc__))[0].rstrip(".")
        sure = objectives.module(name).PROVENANCE
        _add(table, name, said, reads or "-", sure, ", ".join(p[6:] for p in sources(function)))
    for column in (table.columns[0], table.columns[4]):
        column.no_wrap = True
    table.caption = "paper: arXiv number; formula: " + "; ".join(objectives.PROVENANCES.values())
    return table


def show_card(shown: Card) -> None:
    """One objective: its formula, what it reads, how sure it is, and how it pushes the two answers."""
    _show_text(shown.name, shown.formula, _says(shown))
    console = Console()
    if shown.margins:
        console.print(_push_table(shown.margins, "margin (nats)", "incentives and the margin of log-ratios"))
        console.print(_push_table(shown.far[::3], "v (nats)", "incentives as the rejected answer fades (u = 0)"))
    table = _table("by autograd", "value", "meaning", title="does it displace by construction?")
    for question, fact in (
        ("d_w / d_l as rejected -> 0", shown.far_ratio),
        ("d_l bounded as rejected -> 0", shown.far_rejected),
        ("absolute chosen likelihood enters", shown.common_fall),
        ("argmin f (f-divergence)", shown.argmin),
    ):
        _add(table, question, _number(fact.value), fact.words)
    console.print(table)
    for line in CARD_NOTES:
        console.print(line, markup=False, highlight=False)


def _says(card: Card) -> list[tuple[str, str]]:
    """What the objective's file says beside its formula."""
    rows = [("needs", f"{word}: {objectives.WORDS[word]}") for word in card.needs] or [("needs", "nothing more")]
    rows += [("column", f"{name} (here at {value:g})") for name, value in card.columns.items()]
    rows += [("formula", objectives.PROVENANCES[card.provenance])]
    rows += [("defaults", ", ".join(f"{k}={v}" for k, v in card.defaults.items()) or "none")]
    return [*rows, ("paper", ", ".join(card.papers) or "none")]


def _push_table(pushes: Sequence[Push], where: str, title: str) -> Table:
    others = sorted({name for p in pushes for name in p.others})
    table = _table(where, "loss", "d_w", "d_l", "d_w / d_l", *(f"push on {name}" for name in others), title=title)
    for p in pushes:
        _add(table, f"{p.at:g}", *map(_number, (p.loss, p.chosen, p.rejected, p.ratio)), *(
            _number(p.others.get(name, 0.0)) for name in others
        ))  # fmt: skip
    return table


def _whole(value: float) -> str:
    return "-" if isnan(value) else f"{value:.0f}"


def _number(value: float) -> str:
    value += 0.0  # -0 is 0
    return "-" if value != value else "infinite" if value == inf else "-infinite" if value == -inf else f"{value:.4g}"


def _show_text(name: str, text: str, rows: Sequence[tuple[str, str]]) -> None:
    """A docstring as it stands, then what goes with it."""
    console = Console()
    for line in (name, "", *text.splitlines(), ""):
        console.print(printable(line), markup=False, highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        _add(table, *row)
    console.print(table)


def _measure_text(name: str) -> tuple[str, str, list[tuple[str, str]]]:
    if name in FURTHER:
        return name, FURTHER[name].meaning + ".", [("flagged", FURTHER[name].flagged)]
    function = measures.load(name)
    rows = [("needs", ", ".join(sorted(measures.needs(name)))), ("paper", ", ".join(sources(function)))]
    return name, inspect.getdoc(function) or "", rows


def _notebook_text(name: str) -> tuple[str, str, list[tuple[str, str]]]:
    known = {row[0]: row for row in _notebooks()}
    if name not in known:
        raise measures.unknown("notebook", name, known)
    return name, known[name][1], [("paper", known[name][2])]


def _measures() -> list[tuple[str, str, str]]:
    return [(n, summary(measures.load(n).__doc__), ", ".join(sources(measures.load(n)))) for n in measures.names()]


def _notebooks() -> list[tuple[str, str, str]]:
    found = []
    for path in sorted(_NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "".join(cells[0]["source"]) if cells else ""
        found.append((path.stem, summary(text.lstrip("# ")), ", ".join(papers("".join(map(str, cells))))))
    return found
