"""What the commands print: short tables for a terminal. Untrusted text is printed as plain text, never as markup."""

import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diagnostics import measures
from diagnostics.errors import printable
from diagnostics.finding import Finding
from reports import gate
from trainers import objectives

SHOWN = 10  # rows of the flag table
_NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def show_counts(counts: pd.DataFrame, frame: pd.DataFrame, path: Path) -> None:
    """The audit: how many rows each code concerns, and where to look."""
    kept = frame["status"].tolist().count("kept")
    table = _table("code", "kind", "rows", "first rows", "meaning")
    for row in counts.to_dict("records"):
        _add(table, row["code"], row["kind"], row["n"], row["first_rows"], row["meaning"])
    console = Console()
    if len(counts):
        console.print(table)
    console.print(f"{kept} of {len(frame)} rows kept, {len(frame) - kept} skipped.", highlight=False)
    console.print(f"every row and its reason: {path}", markup=False, highlight=False)


def show_flagged(scores: pd.DataFrame, by: str, out: Path) -> None:
    """The most displacement-prone pairs and what was written."""
    done = scores.query("status == 'scored'")
    table = _table("rank", "pair_id", "source row", by, "chosen tokens", "rejected tokens", "flagged")
    for row in done.sort_values("rank").head(SHOWN).to_dict("records"):
        lengths = (int(row["chosen_length"]), int(row["rejected_length"]))
        mark = "yes" if row["flagged"] else ""
        _add(table, int(row["rank"]), row["pair_id"], row["source_row"], f"{row[by]:.4g}", *lengths, mark)
    console = Console()
    console.print(table)
    console.print(
        f"{len(done)} pairs scored, {len(scores) - len(done)} skipped, "
        f"{done['flagged'].tolist().count(True)} flagged by {by} (higher is more prone).",
        highlight=False,
    )
    console.print(
        f"all scores: {out / 'scores.parquet'}   pages: chesboard report {out}", markup=False, highlight=False
    )


def show_gates(findings: Sequence[Finding]) -> bool:
    """One line a gate, and a `::warning::` line for each missed warning; True when no gate failed."""
    table = _table("gate", "value", "n", "verdict", "meaning")
    for f in findings:
        verdict = "pass" if f.passed else "FAIL" if gate.failed([f]) else "warning"
        _add(table, f.name, f"{f.value:.6g}", f.n, verdict, f.meaning)
    console = Console()
    console.print(table)
    for line in gate.warnings(findings):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return not gate.failed(findings)


def show_list() -> None:
    """Every objective, measure and notebook with its paper, from the docstrings and the notebooks' first cells."""
    console = Console()
    for title, rows in (("objectives", _objectives()), ("measures", _measures()), ("notebooks", _notebooks())):
        table = _table(title, "what it is", "source")
        for name, text, source in rows:
            _add(table, name, text, source)
        console.print(table)


def _objectives() -> list[tuple[str, str, str]]:
    found = []
    for name in objectives.names():
        function = objectives.load(name)
        parameters = inspect.signature(function).parameters.items()
        settings = ", ".join(f"{k}={p.default}" for k, p in parameters if p.kind is p.KEYWORD_ONLY)
        found.append((name, f"{_summary(function.__doc__)} [{settings}]", _sources(function)))
    return found


def _measures() -> list[tuple[str, str, str]]:
    return [(n, _summary(measures.load(n).__doc__), _sources(measures.load(n))) for n in measures.names()]


def _notebooks() -> list[tuple[str, str, str]]:
    found = []
    for path in sorted(_NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "".join(cells[0]["source"]) if cells else ""
        found.append((path.stem, _summary(text.lstrip("# ")), ", ".join(_papers("".join(map(str, cells))))))
    return found


def _sources(function: object) -> str:
    """Papers named in the function's docstring, else in its file's."""
    return ", ".join(
        _papers(inspect.getdoc(function) or "") or _papers(inspect.getdoc(inspect.getmodule(function)) or "")
    )


def _papers(text: str) -> list[str]:
    """arXiv numbers in the order they are named."""
    return list(dict.fromkeys(f"arXiv:{n}" for n in re.findall(r"arXiv[: ](\d{4}\.\d{5})", text)))


def _summary(text: str | None) -> str:
    """First paragraph on one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, show_lines=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _add(table: Table, *values: object) -> None:
    table.add_row(*(Text(printable(str(v))) for v in values))
