"""One run against another on the same pairs: a page, five lines of Markdown, and the verdict for the terminal."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from analysis.diff import verdict
from analysis.diff.verdict import Compared
from analysis.questions import Headline, Page, slug
from analysis.tables import runs
from diagnostics.errors import DataError, UserError
from diagnostics.runlog import RunLog
from reports.markdown import escaped
from reports.notebooks import beside, execute


def make(before: Path, after: Path, out: Path | None = None, *, text: bool = True) -> tuple[Compared, list[str], Path]:
    """Compare two runs; the comparison, five lines of Markdown, and the page. out: default is report/ in `after`.

    Writes diff-<before>.html and diff-<before>.md. Raises UserError for one run given
    twice, DataError where the runs share no measured pair.
    """
    if Path(before).resolve() == Path(after).resolve():
        raise UserError(f"{before}: is given twice. Give two different runs.")
    both = verdict.compare(_run(before), _run(after))
    out = (out or after / "report").resolve()
    out.mkdir(parents=True, exist_ok=True)
    made = page(both, out, {}, text=text)
    lines = [escaped(line) for line in verdict.markdown(both)]
    (out / f"{made.stem}.md").write_text("\n".join(f"- {line}" for line in lines) + "\n", encoding="utf-8")
    return both, lines, execute(made, out, beside=beside(out))


def page(both: Compared, out: Path, made: Mapping[str, str], *, text: bool = True) -> Page:
    """The page to make in `out`, with links to the runs' own pages: those that are made with it (address by the run's
    folder), or were made before."""
    logs, (before, after) = (both.before, both.after), both.names
    first, second = (made.get(str(log.path)) or page_of(log, out) for log in logs)
    parameters = {"before": str(logs[0].path), "after": str(logs[1].path), "text": text}
    parameters |= {"before_page": first, "after_page": second}
    stem = f"diff-{slug(both.after.name if made else both.before.name)}"  # the other one is the report's
    return Page("diff_report", f"{after} against {before}", parameters, stem)


def against(baseline: Path, logs: Sequence[RunLog]) -> list[Compared]:
    """Every one of the runs held against the baseline, which is none of them."""
    base = _run(baseline)
    others = [log for log in logs if log.path.resolve() != base.path.resolve()]
    if not others:
        raise UserError(f"{baseline}: give another run than the baseline to hold against it.")
    return [verdict.compare(base, log) for log in others]


def entry(both: Compared) -> Headline:
    """Its line in the overview."""
    found, (before, after) = verdict.judge(both), both.names
    return Headline(f"{after} against {before}", found[0].meaning, found[0].passed, found)


def _run(path: Path) -> RunLog:
    path = Path(path).resolve()
    if not runs.is_run(path):
        raise DataError(f"{path}: is no run folder. Give what `chesboard train`, `trace` or `demo` wrote.")
    return runs.load(path)


def page_of(log: RunLog, out: Path) -> str:
    """Address from `out` of the page that was made in the run's own folder; "" where none was. A page of the same name
    elsewhere may be another run's."""
    made = log.path / "report" / f"run-{slug(log.name)}.html"
    return quote(os.path.relpath(made.resolve(), out.resolve())) if made.is_file() else ""
