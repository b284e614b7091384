"""Rerun paper analyses: train and measure, run each one's notebook, and keep the ledger of all claims."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from yaml import YAMLError

from analysis import papers as judged
from analysis.papers import Claim, Paper
from diagnostics.errors import DataError, NotebookError, UserError
from diagnostics.plain_yaml import parse_plain
from diagnostics.processes import tell
from diagnostics.progress import counted
from diagnostics.runlog import write_frame, write_json
from reports.notebooks import Page, execute, template
from trainers import papers as made
from trainers.models import quiet
from trainers.studies.compare import workers
from trainers.studies.paper_cost import Work, said, speed
from trainers.studies.paper_runs import Form, Order, Scale


@dataclass(frozen=True)
class Line:
    """One analysis on the ledger. page: its HTML relative to the ledger; seeds: in words; claims: judged; minutes: what
    it took."""

    name: str
    title: str
    source: str
    scale: str
    page: str
    seeds: str
    claims: list[Claim]
    minutes: float


def rerun(
    names: Sequence[str],
    out: Path,
    *,
    scale: Scale = "toy",
    seeds: int | None = None,
    model: str | None = None,
    data: Mapping[str, str] | None = None,
    jobs: int | None = None,
    changes: Mapping[str, Any] | None = None,
    form: Form | None = None,
) -> tuple[Path, list[str]]:
    """Rerun the analyses and write their pages and the ledger; returns the ledger and what failed, in sentences.

    data: analysis -> data set. jobs: processes at a time; default two at toy scale, else one. changes: of settings, in
    every analysis that has them. One analysis that cannot go on does not stop the others; alone, it raises. Of a given
    model the cost is said first.
    """
    out, failed = out.resolve(), []
    for name in (*names, *(data or {})):
        made.load(name)
    own = {name: _changes(name, names, changes or {}) for name in names}
    out.mkdir(parents=True, exist_ok=True)
    quiet()
    jobs = jobs or (2 if scale == "toy" else 1)
    with alone(out), workers(jobs) as pool:
        orders = {name: Order(scale, out, seeds, model, (data or {}).get(name), pool, own[name], form=form)
                  for name in names}  # fmt: skip
        if scale != "toy":
            _say_cost(orders, jobs)
        for name, order in counted(orders.items(), "papers", len(names), unit="paper", show=len(names) > 1):
            try:
                report(made.rerun(name, order))
            except (UserError, DataError, NotebookError) as error:
                if len(names) == 1:
                    raise
                failed.append(f"{name}: {error}")
    return ledger(out), failed


def _changes(name: str, names: Sequence[str], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes of an analysis' own settings, and those that are no analysis' setting, so that it refuses them."""
    known = {other: {setting.name for setting in made.load(other).SETTINGS} for other in names}
    every = set().union(*known.values())
    return {key: value for key, value in changes.items() if key in known[name] or key not in every}


def _say_cost(orders: Mapping[str, Order], jobs: int) -> None:
    """A line for each analysis that is not finished, and one for all. What cannot be run, it says itself when its turn
    comes."""
    every: list[Work] = []
    speeds = []
    for name, order in orders.items():
        with contextlib.suppress(UserError, DataError):
            works = made.work(name, order)
            if works:
                speeds.append(speed(str(order.model or made.values(made.load(name).SETTINGS, order)["model"])))
                tell(f"{name}: {said(works, speeds[-1], jobs)}.")
                every += works
    if len(speeds) > 1:
        tell(f"all {len(speeds)} analyses: {said(every, speeds[0], jobs)}.")


def settings_of(texts: Sequence[str]) -> dict[str, Any]:
    """--set: NAME=VALUE, repeated; values are read as YAML."""
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise UserError(f"--set {text}: write NAME=VALUE, for example --set learning_rate=1e-5.")
        try:
            found[name.strip()] = parse_plain(value)
        except YAMLError:
            raise UserError(f"--set {text}: the value is no plain YAML; put text in quotes.") from None
    return found


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the folder: a second command in it would clear away what the first is building."""
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"{out}: another `chesboard paper` is at work there. Wait for it, or choose another --out."
        ) from None


def report(folder: Path) -> Path:
    """Run the notebook of a finished analysis; returns its page."""
    paper = judged.load(folder)
    title = str(judged.published()[paper.name]["title"])
    page = Page(f"paper_{paper.name}", title, {"folder": str(folder)}, folder.name)
    return execute(page, folder.parent, beside=["index.html"])


def ledger(out: Path) -> Path:
    """Write out/index.html, ledger.parquet and ledger.json: every claim of every finished analysis in the folder."""
    lines, lost = _lines(_finished(out))
    every = [c for line in lines for c in line.claims]
    told = iter([judged.row(c, gone) for c, gone in zip(every, judged.doubtful(every))])
    shown = [(line, [next(told) for _ in line.claims]) for line in lines]
    rows = [
        {"analysis": line.name, "scale": line.scale, "page": line.page, "id": c.id} | row
        for line, of in shown
        for c, row in zip(line.claims, of)
    ]
    write_frame(out / "ledger.parquet", pd.DataFrame(rows))
    said = judged.summary(every)
    compared = _compared(lines)
    found = {"summary": said, "carried": compared, "claims": rows, "unreadable": lost}
    write_json(out / "ledger.json", found)
    page = out / "index.html"
    words = {
        "summary": said,
        "lines": shown,
        "lost": lost,
        "compared": compared,
        "figures": judged.figures(),
        "pages": {line.name: line.page for line in reversed(lines)},
        "minutes": sum(line.minutes for line in lines),
    }
    page.write_text(template("ledger.html.j2").render(words), encoding="utf-8")
    return page


def _compared(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """What carries over from toy scale: first of all analyses together, then of each that was run at several scales.
    name: empty for all; says: a sentence a scale; rows: its claims side by side."""
    by_name: dict[str, dict[str, list[Claim]]] = {}
    for line in lines:
        by_name.setdefault(line.name, {})[line.scale] = line.claims
    several = {name: of for name, of in by_name.items() if len(of) > 1}
    found = []
    for name, of in several.items():
        says = [judged.carried(of["toy"], of[scale], scale) for scale in of if scale != "toy" and "toy" in of]
        found.append({"name": name, "says": says, "rows": judged.beside(of)})
    says = []
    for scale in ("small", "paper"):
        both = [of for of in several.values() if {"toy", scale} <= set(of)]
        if both:
            toy, other = ([claim for of in both for claim in of[where]] for where in ("toy", scale))
            says.append(judged.carried(toy, other, scale))
    return [{"name": "", "says": says, "rows": []}] * bool(says) + found


def listed() -> list[tuple[str, str, str, str, str]]:
    """For `chesboard paper --list`: name, title, source, number of claims, what --data may be at toy scale."""
    return [_listed(name) for name in judged.names()]


def at(scale: Scale) -> list[str]:
    """The analyses that can be run at this scale."""
    able = made.at(scale)
    return [name for name in judged.names() if name in able]


def data_by_name(names: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """--data: one data set for one analysis, or NAME=DATA for each of several."""
    if len(names) == 1 and len(given) == 1 and not given[0].startswith(f"{names[0]}="):
        return {names[0]: given[0]}
    found = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or name not in names:
            raise UserError(f"--data {text}: with several analyses write NAME=DATA; the names are {', '.join(names)}.")
        found[name] = value
    return found


def _listed(name: str) -> tuple[str, str, str, str, str]:
    entry = judged.published()[name]
    return name, str(entry["title"]), str(entry["paper"]), str(len(entry["claims"])), made.load(name).DATA


def _finished(out: Path) -> list[Path]:
    """Folders of finished analyses, by name, toy before small and paper scale."""
    found = [out / f"{name}{end}" for end in ("", "-small", "-paper") for name in judged.names()]
    return [folder for folder in found if (folder / judged.RECORD).is_file()]


def _lines(folders: Sequence[Path]) -> tuple[list[Line], list[str]]:
    """The analyses that can be read, and a sentence for each that cannot, so that one does not take the ledger away."""
    lines, lost = [], []
    for folder in folders:
        try:
            lines.append(_line(judged.load(folder)))
        except DataError as error:
            lost.append(f"{folder.name}: {error}")
    return lines, lost


def _line(paper: Paper) -> Line:
    entry, scale = judged.published()[paper.name], str(paper.record["scale"])
    minutes = float(paper.record["seconds"]) / 60
    page = f"{paper.path.name}.html"
    seeds, claims = judged.seed_words(paper), judged.judge(paper)
    return Line(paper.name, str(entry["title"]), str(entry["paper"]), scale, page, seeds, claims, minutes)
