"""Which pairs are prone to displacement, before any training?"""

from collections.abc import Sequence

from analysis.flag import page
from analysis.questions import Headline, Page, slug
from analysis.tables.runs import Flags
from diagnostics.runlog import RunLog

ORDER = 5


def take(logs: Sequence[RunLog], scores: Sequence[Flags]) -> tuple[list[Flags] | None, Sequence[RunLog], list[Flags]]:
    """Every score folder that is left."""
    return list(scores) or None, logs, []


def pages(found: Sequence[Flags]) -> list[Page]:
    """One a folder."""
    return [Page("flag_report", f"Scores {f.name}", {"flag_dir": str(f.path)}, f"flag-{slug(f.name)}") for f in found]


def entries(found: Sequence[Flags]) -> list[Headline]:
    """The headline of each."""
    return [Headline(f"Scores {f.name}", page.headline(f), None, []) for f in found]
