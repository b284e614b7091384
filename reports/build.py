"""Build a report: pick the notebooks for what the folders hold, run them, tie the pages together."""

import dataclasses
import html
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from analysis.ablate import page as ablate_page
from analysis.ablate import tables as ablate
from analysis.ablate.tables import Ablation
from analysis.compare import board
from analysis.compare import verdict as board_verdict
from analysis.compare.board import Board
from analysis.demo import claims
from analysis.demo import page as demo_page
from analysis.demo import tables as demo
from analysis.demo.tables import Demo
from analysis.flag import page as flag_page
from analysis.run import verdict
from analysis.show.page import value as shown
from analysis.show.wording import count
from analysis.tables import runs
from diagnostics.errors import DataError, UserError, printable
from diagnostics.finding import Finding
from diagnostics.folder import is_aside
from diagnostics.progress import counted
from diagnostics.runlog import RunLog, write_json
from reports.notebooks import Page, execute, names, template

STEP_SUMMARY_LIMIT = 1024 * 1024
FIRST = 5


@dataclass(frozen=True)
class Material:
    """Everything given, read once. demo, board and ablation are None unless at least two runs belong to one."""

    logs: list[RunLog]
    scores: list[runs.Flags]
    demo: Demo | None
    board: Board | None
    ablation: Ablation | None


@dataclass(frozen=True)
class Entry:
    """One line of the overview: a name, a sentence, whether it is good news (None where nothing is judged)."""

    name: str
    says: str
    good: bool | None
    findings: list[Finding]


def build_report(paths: Sequence[Path], *, notebooks: Sequence[str] | None = None, out: Path | None = None) -> Path:
    """Make the report of some run and score folders and return its index.html.

    paths: folders of runs or scores, or folders that contain such folders. notebooks: make only these.
    out: where to write (default: report/ in the first path). Writes index.html, one page a notebook, report.json and
    summary.md (also appended to $GITHUB_STEP_SUMMARY). Raises DataError for unreadable folders, before any notebook
    is started, and NotebookError when a notebook crashes.
    """
    paths = [Path(p).resolve() for p in paths]
    material = read(paths)
    pages = [p for p in plan(material) if notebooks is None or p.notebook in notebooks]
    if not pages:
        raise UserError(_nothing(notebooks, material))
    out = Path(out).resolve() if out else paths[0] / "report"
    out.mkdir(parents=True, exist_ok=True)
    _run_all(pages, out)
    return _overview(material, pages, out)


def read(paths: Sequence[Path]) -> Material:
    """Read every folder once; each unreadable one ends in its own sentence."""
    if not paths:
        raise UserError("No folder given. Give at least one folder that `chesboard train`, `flag` or `demo` wrote.")
    folders = list(dict.fromkeys(f for p in paths for f in _folders(p)))
    logs = [runs.load(f) for f in folders if runs.is_run(f)]
    scores = [runs.load_flags(f) for f in folders if runs.is_flags(f)]
    kinds = (demo.is_demo, board.is_board, ablate.is_ablation)
    of_demo, of_board, of_ablation = ([log for log in logs if kind(log)] for kind in kinds)
    return Material(
        logs,
        scores,
        demo.collect(of_demo, scores) if len(of_demo) > 1 else None,
        board.collect(of_board) if len(of_board) > 1 else None,
        ablate.collect(of_ablation) if len(of_ablation) > 1 else None,
    )


def plan(material: Material) -> list[Page]:
    """The pages to make: the board and the demo side by side, then runs, then scores.

    Of a demo only one run a case (the lowest seed and prompt) and one score folder get a page of their own, of a
    board or an ablation no run.
    """
    logs, scores = material.logs, material.scores
    pages = []
    if material.board:
        logs = [log for log in logs if not board.is_board(log)]
        given = {"run_dirs": [str(r.path) for r in material.board.logs]}
        pages.append(Page("objective_board", "The board: objectives side by side", given, "board"))
    if material.ablation:
        logs = [log for log in logs if not ablate.is_ablation(log)]
        given = {"run_dirs": [str(r.path) for r in material.ablation.logs]}
        pages.append(Page("ablate_report", "Without the flagged pairs, or without any", given, "ablate"))
    if material.demo:
        logs = [log for log in logs if not demo.is_demo(log)] + _examples(material.demo)
        scores = scores[:1]
        given = {
            "run_dirs": [str(r.path) for r in material.demo.logs],
            "flag_dirs": [str(f.path) for f in material.scores],
        }
        pages.append(Page("demo_report", "The demo, side by side", given, "demo"))
    for log in logs:
        pages.append(Page("run_report", f"Run {log.name}", {"run_dir": str(log.path)}, f"run-{_slug(log.name)}"))
    for found in scores:
        pages.append(
            Page("flag_report", f"Scores {found.name}", {"flag_dir": str(found.path)}, f"flag-{_slug(found.name)}")
        )
    return _distinct(pages)


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


def _examples(found: Demo) -> list[RunLog]:
    """One run a case: that of the lowest seed and prompt."""
    ordered = sorted(found.logs, key=lambda r: (str(r.config.get("demo_seed")), str(r.config.get("demo_prompt"))))
    first: dict[tuple[str, str], RunLog] = {}
    for log in ordered:
        first.setdefault((demo.world(log), str(log.config.get("demo_case"))), log)
    return [log for (world, case), log in first.items() if case in ("no_never", "dpo_all") or world not in _WORLDS]


_WORLDS = ("persona", "refusal")


def _run_all(pages: list[Page], out: Path) -> None:
    """Two notebooks at a time: while one kernel starts, another computes."""
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        waiting = [pool.submit(execute, page, out) for page in pages]
        try:
            for done in counted(waiting, "report", len(waiting), unit="page"):
                done.result()
        finally:
            for job in waiting:
                job.cancel()


def _overview(material: Material, pages: list[Page], out: Path) -> Path:
    entries = _entries(material)
    write_json(out / "report.json", _as_json(entries, pages))
    summary = _summary(entries)
    (out / "summary.md").write_text(summary, encoding="utf-8")
    _append_step_summary(summary)
    index = out / "index.html"
    links = [(f"{page.stem}.html", page.title) for page in pages] + _scorecards(material, out)
    index.write_text(template("index.html.j2").render(entries=entries, links=links), encoding="utf-8")
    return index


def _scorecards(material: Material, out: Path) -> list[tuple[str, str]]:
    """Address from `out` and title of the pages that `chesboard scorecard` made of these runs, or here."""
    places = {out: ""} | {log.path / "report": f" of {log.name}" for log in material.logs}
    found = {(place / "scorecard.html").resolve(): words for place, words in reversed(places.items())}
    return [
        (quote(os.path.relpath(path, out.resolve())), f"Scorecard{words}: which predictor to trust")
        for path, words in reversed(found.items())
        if path.is_file()
    ]


def _entries(material: Material) -> list[Entry]:
    entries = []
    if material.board:
        found = board_verdict.findings(material.board)
        entries.append(Entry("The board", board_verdict.headline(material.board), None, found))
    if material.ablation:
        found = [*ablate_page.findings(material.ablation), *ablate_page.moved(material.ablation)]
        entries.append(Entry("Filtering", ablate_page.headline(material.ablation), None, found))
    if material.demo:
        judged = claims.judge(material.demo)
        found = [c.finding() for c in judged]
        entries.append(Entry("The demo", demo_page.headline(material.demo), claims.overall(judged), found))
    for log in material.logs:
        if (material.board and board.is_board(log)) or (material.ablation and ablate.is_ablation(log)):
            continue  # dozens of runs, and the comparison's findings hold what matters of each
        found = verdict.judge(log)
        entries.append(Entry(f"Run {log.name}", found[0].meaning, found[0].passed, found))
    entries += [Entry(f"Scores {f.name}", flag_page.headline(f), None, []) for f in material.scores]
    return entries


def _as_json(entries: list[Entry], pages: list[Page]) -> dict[str, Any]:
    listed = [
        {"name": e.name, "verdict": e.says, "good": e.good, "findings": [_plain(f) for f in e.findings]}
        for e in entries
    ]
    return {"verdict": entries[0].says, "entries": listed, "pages": [f"{p.stem}.html" for p in pages]}


def _plain(finding: Finding) -> dict[str, Any]:
    """A Finding as JSON: no NaN, which JSON does not know."""
    return {k: _finite(v) for k, v in dataclasses.asdict(finding).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(entries: list[Entry]) -> str:
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
        "| what | value | n | meaning |",
        "|---|---|---|---|",
    ]
    for f in entries[0].findings:
        value = "" if math.isnan(f.value) else shown(f)
        lines.append(f"| {_markdown(f.name)} | {value} | {f.n} | {_markdown(f.meaning)} |")
    return "\n".join([*lines, "", "</details>", ""])


def _bullet(entry: Entry) -> str:
    sign = {True: "✅", False: "⚠️", None: "ℹ️"}[entry.good]
    return f"- {sign} **{_markdown(entry.name)}**: {_markdown(entry.says)}"


def _markdown(text: str) -> str:
    """Text for Markdown: no control characters, no HTML, no markup, and no address that becomes a link by itself."""
    escaped = html.escape(printable(text.replace("\n", " ")), quote=False)
    escaped = re.sub(r"([\\`*_\[\]|~#@$])", r"\\\1", escaped)
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", escaped).replace("://", "\\://")


def _append_step_summary(summary: str) -> None:
    """Show the summary on the CI page; past 1 MiB it would be dropped whole, so then it is left out with a word."""
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if not place:
        return
    size = Path(place).stat().st_size if Path(place).exists() else 0
    room = size + len(summary.encode()) < STEP_SUMMARY_LIMIT
    with open(place, "a", encoding="utf-8") as file:
        file.write(summary if room else "\nThe report is too long for this page; see the artefact.\n")


def _nothing(notebooks: Sequence[str] | None, material: Material) -> str:
    wanted = ", ".join(notebooks or [])
    unknown = [n for n in notebooks or [] if n not in names()]
    if unknown:
        return f"{unknown[0]}: no such notebook. There are: {', '.join(names())}."
    have = f"{count(len(material.logs), 'run')} and {count(len(material.scores), 'score folder')}"
    return f"{wanted}: nothing to report with this notebook; the folders hold {have}."


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"


def _distinct(pages: list[Page]) -> list[Page]:
    """Number the pages whose folders have the same name."""
    seen: dict[str, int] = {}
    made = []
    for page in pages:
        seen[page.stem] = seen.get(page.stem, 0) + 1
        again = seen[page.stem]
        made.append(page if again == 1 else dataclasses.replace(page, stem=f"{page.stem}-{again}"))
    return made
