"""What did a run do to the responses it was told to prefer?"""

from collections.abc import Sequence

from analysis.questions import Headline, Page, slug
from analysis.run import kept, verdict
from analysis.show import units
from analysis.tables.runs import Flags
from diagnostics.runlog import RunLog

ORDER = 4


def take(logs: Sequence[RunLog], scores: Sequence[Flags]) -> tuple[list[RunLog] | None, list[RunLog], Sequence[Flags]]:
    """Every run that is left."""
    return list(logs) or None, [], scores


def pages(found: Sequence[RunLog]) -> list[Page]:
    """One a run."""
    return [Page("run_report", f"Run {log.name}", {"run_dir": str(log.path)}, f"run-{slug(log.name)}") for log in found]


def entries(found: Sequence[RunLog]) -> list[Headline]:
    """The verdict of each."""
    judged = [(log, kept.verdict_of(log)) for log in found]
    return [
        Headline(f"Run {log.name}", said[0].meaning, said[0].passed, verdict.shown(log, said), units.of(log).values)
        for log, said in judged
    ]
