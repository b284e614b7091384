"""Build a report: pick the notebooks for what the folders hold, run them, tie the pages together."""

import dataclasses
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zipfile import ZIP_DEFLATED, ZipFile

import pandas as pd

from analysis import questions
from analysis.questions import Headline, Page
from analysis.run import overview
from analysis.show.page import value as shown
from analysis.show.wording import count
from analysis.tables import pair_table, runs
from diagnostics.errors import DataError, UserError
from diagnostics.folder import is_aside
from diagnostics.progress import counted
from diagnostics.runlog import RunLog, write_json
from reports import diff
from reports.markdown import escaped
from reports.notebooks import execute, names, takes, template

STEP_SUMMARY_LIMIT = 1024 * 1024
FIRST = 5
ALONE = ("run_report", "flag_report")  # notebooks of one run or score folder; the others compare
FEW = 8  # pages that each page links to; where there are more, the overview lists them


def build_report(
    paths: Sequence[Path],
    *,
    notebooks: Sequence[str] | None = None,
    out: Path | None = None,
    text: bool = True,
    baseline: Path | None = None,
    figures: Path | None = None,
) -> Path:
    """Make the report of some run and score folders and return its index.html.

    paths: folders of runs or scores, or folders that contain such folders. notebooks: make only these.
    out: where to write (default: report/ in the first path); text: False leaves the texts of the data out.
    baseline: a run that every other one is held against, on a page each. figures: a folder for every figure as SVG and
    PDF with caption and data, and every table as CSV and LaTeX.

    Writes index.html, one page a notebook, report.json and summary.md (also appended to $GITHUB_STEP_SUMMARY). Raises
    DataError for unreadable folders, before any notebook is started, and NotebookError when a notebook crashes.
    """
    paths = [Path(p).resolve() for p in paths]
    logs, scores = read(paths)
    asked = plan(logs, scores)
    pages = [page for page in pages_of(asked) if notebooks is None or page.notebook in notebooks]
    pages = pages if text else [_without_text(page) for page in pages]
    if not pages:
        raise UserError(_nothing(notebooks, logs, scores))
    compared = diff.against(baseline, logs) if baseline else []
    out = Path(out).resolve() if out else paths[0] / "report"
    out.mkdir(parents=True, exist_ok=True)
    pages = _distinct(pages)
    pages = _distinct(pages + [diff.page(both, out, _of_runs(pages), text=text) for both in compared])
    pages = [_with_links(page, logs, scores, pages, out) for page in pages]
    _run_all(
        pages,
        out,
        [(f"{page.stem}.html", page.title) for page in pages] + _scorecards(logs, out),
        Path(figures).resolve() if figures else None,
    )
    return _overview(entries_of(asked) + [diff.entry(both) for both in compared], pages, logs, out)


def read(paths: Sequence[Path]) -> tuple[list[RunLog], list[runs.Flags]]:
    """Every run log and score folder, read once; each unreadable one ends in its own sentence."""
    if not paths:
        raise UserError("No folder given. Give at least one folder that `chesboard train`, `flag` or `demo` wrote.")
    folders = list(dict.fromkeys(f for p in paths for f in _folders(p)))
    logs = [runs.load(f) for f in folders if runs.is_run(f)]
    return logs, [runs.load_flags(f) for f in folders if runs.is_flags(f)]


def plan(logs: Sequence[RunLog], scores: Sequence[runs.Flags]) -> list[tuple[Any, Any]]:
    """The questions that these folders can answer, each with what it found of its own."""
    asked = []
    for question in questions.every():
        found, logs, scores = question.take(logs, scores)
        if found is not None:
            asked.append((question, found))
    return asked


def pages_of(asked: Sequence[tuple[Any, Any]]) -> list[Page]:
    """The pages to make, by distinct names."""
    return _distinct([page for question, found in asked for page in question.pages(found)])


def entries_of(asked: Sequence[tuple[Any, Any]]) -> list[Headline]:
    """The lines of the overview."""
    return [entry for question, found in asked for entry in question.entries(found)]


def _without_text(page: Page) -> Page:
    """The page with numbers alone, where its notebook shows texts."""
    known = takes(page.notebook)
    return dataclasses.replace(page, parameters={**page.parameters, "text": False}) if "text" in known else page


def _with_links(
    page: Page, logs: Sequence[RunLog], scores: Sequence[runs.Flags], pages: Sequence[Page], out: Path
) -> Page:
    """The page with the addresses of others that its notebook takes: a run's of those of the score folders, a page of
    many runs of theirs, made here or before; "" for none."""
    made = {str(p.parameters.get(_OF.get(p.notebook, ""))): f"{p.stem}.html" for p in pages}
    more: dict[str, dict[str, str]] = {}
    if "flags" in takes(page.notebook):
        more["flags"] = {str(found.path): made.get(str(found.path), "") for found in scores}
    if "pages" in takes(page.notebook):
        more["pages"] = {str(log.path): made.get(str(log.path)) or diff.page_of(log, out) for log in logs}
    return dataclasses.replace(page, parameters={**page.parameters, **more})


_OF = {"run_report": "run_dir", "flag_report": "flag_dir"}  # the pages of one folder, and its parameter


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. Give a folder that `chesboard train`, `flag` or `demo` wrote.")
    if runs.is_run(path) or runs.is_flags(path):
        return [path]
    inside = sorted({p.parent for name in ("config.json", "scores.parquet") for p in path.rglob(name)})
    inside = [p for p in inside if (runs.is_run(p) or runs.is_flags(p)) and not is_aside(p)]
    if not inside:
        raise DataError(f"{path}: holds neither a run log (config.json, steps.jsonl) nor scores (scores.parquet).")
    return inside


def _run_all(pages: list[Page], out: Path, links: list[tuple[str, str]], figures: Path | None = None) -> None:
    """Two notebooks at a time: while one kernel starts, another computes."""
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        shown = [] if len(links) > FEW else links
        waiting = [pool.submit(execute, page, out, shown, figures=figures) for page in pages]
        try:
            for done in counted(waiting, "report", len(waiting), unit="page"):
                done.result()
        finally:
            for job in waiting:
                job.cancel()


def _of_runs(pages: Sequence[Page]) -> dict[str, str]:
    """Addresses of the pages of one run each, by its folder."""
    return {str(page.parameters["run_dir"]): f"{page.stem}.html" for page in pages if "run_dir" in page.parameters}


def _overview(
    entries: list[Headline],
    pages: list[Page],
    logs: Sequence[RunLog],
    out: Path,
) -> Path:
    write_json(out / "report.json", _as_json(entries, pages))
    summary = _summary(entries)
    (out / "summary.md").write_text(summary, encoding="utf-8")
    _append_step_summary(summary)
    index = out / "index.html"
    links = [(f"{page.stem}.html", page.title) for page in pages] + _scorecards(logs, out)
    files = _downloads(logs, out)
    made = _of_runs(pages)
    addresses = {str(log.path): made.get(str(log.path)) or diff.page_of(log, out) for log in logs}
    counts, table = overview.counts(logs), overview.table(logs, addresses)
    alone = {f"{page.stem}.html" for page in pages if page.notebook in ALONE}
    words = dict(entries=entries, links=links, alone=alone, runs=len(logs), counts=counts, table=table, files=files)
    index.write_text(template("index.html.j2").render(words), encoding="utf-8")
    _zip(out, [index.name, *files, *(f"{page.stem}.{kind}" for page in pages for kind in ("html", "ipynb"))])
    return index


ZIP = "report.zip"


def _downloads(logs: Sequence[RunLog], out: Path) -> list[str]:
    """The files that hold the report's numbers: report.json, summary.md, and pairs.csv, every probe pair of every
    run."""
    tables = [pair_table.of_run(log).assign(run=log.name) for log in logs]
    tables = [table for table in tables if len(table)]
    (out / "pairs.csv").unlink(missing_ok=True)
    if tables:
        pd.concat(tables).to_csv(out / "pairs.csv", index=False)
    return [name for name in ("report.json", "summary.md", "pairs.csv") if (out / name).is_file()]


def _zip(out: Path, names: Sequence[str]) -> None:
    """All of the report in one file, of the files that are there."""
    with ZipFile(out / ZIP, "w", ZIP_DEFLATED) as packed:
        for name in names:
            if (out / name).is_file():
                packed.write(out / name, name)


def _scorecards(logs: Sequence[RunLog], out: Path) -> list[tuple[str, str]]:
    """Address from `out` and title of the pages that `chesboard scorecard` made of these runs, or here."""
    places = {out: ""} | {log.path / "report": f" of {log.name}" for log in logs}
    found = {(place / "scorecard.html").resolve(): words for place, words in reversed(places.items())}
    return [
        (quote(os.path.relpath(path, out.resolve())), f"Scorecard{words}: which predictor to trust")
        for path, words in reversed(found.items())
        if path.is_file()
    ]


def _as_json(entries: list[Headline], pages: list[Page]) -> dict[str, Any]:
    listed = [
        {"name": e.name, "verdict": e.says, "good": e.good, "findings": [f.as_json() for f in e.findings]}
        for e in entries
    ]
    return {"verdict": entries[0].says, "entries": listed, "pages": [f"{p.stem}.html" for p in pages]}


def _summary(entries: list[Headline]) -> str:
    """summary.md: a heading, one line a run, the numbers of the first folded away. All text is escaped."""
    lines = ["### Chesboard report", ""]
    lines += [_bullet(e) for e in entries[:FIRST]]
    if len(entries) > FIRST:
        lines += ["", f"<details><summary>The other {len(entries) - FIRST}</summary>", ""]
        lines += [*(_bullet(e) for e in entries[FIRST:]), "", "</details>"]
    lines += [
        "",
        "<details><summary>All numbers of the first</summary>",
        "",
        *([escaped(entries[0].note), ""] if entries[0].note else []),
        "| what | value | n | meaning |",
        "|---|---|---|---|",
    ]
    for f in entries[0].findings:
        value = "" if math.isnan(f.value) else shown(f)
        lines.append(f"| {escaped(f.name)} | {value} | {f.n} | {escaped(f.meaning)} |")
    return "\n".join([*lines, "", "</details>", ""])


def _bullet(entry: Headline) -> str:
    sign = {True: "✅", False: "⚠️", None: "ℹ️"}[entry.good]
    return f"- {sign} **{escaped(entry.name)}**: {escaped(entry.says)}"


def _append_step_summary(summary: str) -> None:
    """Show the summary on the CI page; past 1 MiB it would be dropped whole, so then it is left out with a word."""
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if not place:
        return
    size = Path(place).stat().st_size if Path(place).exists() else 0
    room = size + len(summary.encode()) < STEP_SUMMARY_LIMIT
    with open(place, "a", encoding="utf-8") as file:
        file.write(summary if room else "\nThe report is too long for this page; see the artefact.\n")


def _nothing(notebooks: Sequence[str] | None, logs: Sequence[RunLog], scores: Sequence[runs.Flags]) -> str:
    wanted = ", ".join(notebooks or [])
    unknown = [n for n in notebooks or [] if n not in names()]
    if unknown:
        return f"{unknown[0]}: no such notebook. There are: {', '.join(names())}."
    have = f"{count(len(logs), 'run')} and {count(len(scores), 'score folder')}"
    return f"{wanted}: nothing to report with this notebook; the folders hold {have}."


def _distinct(pages: list[Page]) -> list[Page]:
    """Number the pages whose folders have the same name."""
    seen: dict[str, int] = {}
    made = []
    for page in pages:
        seen[page.stem] = seen.get(page.stem, 0) + 1
        again = seen[page.stem]
        made.append(page if again == 1 else dataclasses.replace(page, stem=f"{page.stem}-{again}"))
    return made
