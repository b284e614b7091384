"""Does leaving out the flagged pairs help more than leaving out any?"""

from collections.abc import Sequence

from analysis.ablate import page, tables
from analysis.ablate.tables import Ablation
from analysis.questions import Headline, Page
from analysis.tables.runs import Flags
from diagnostics.runlog import RunLog

ORDER = 2


def take(logs: Sequence[RunLog], scores: Sequence[Flags]) -> tuple[Ablation | None, list[RunLog], Sequence[Flags]]:
    """The runs of an ablation, where there are two; none of them gets a page of its own."""
    own = [log for log in logs if tables.is_ablation(log)]
    if len(own) < 2:
        return None, list(logs), scores
    return tables.collect(own), [log for log in logs if not tables.is_ablation(log)], scores


def pages(found: Ablation) -> list[Page]:
    """The ablation."""
    given = {"run_dirs": [str(run.path) for run in found.logs]}
    return [Page("ablate_report", "Without the flagged pairs, or without any", given, "ablate")]


def entries(found: Ablation) -> list[Headline]:
    """Its headline."""
    return [Headline("Filtering", page.headline(found), None, [*page.findings(found), *page.moved(found)])]
