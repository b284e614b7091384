"""What the embedded default shows, over all its runs."""

from collections.abc import Sequence

from analysis.demo import claims, page, tables
from analysis.demo.tables import Demo
from analysis.flag import question as flag_question
from analysis.questions import Headline, Page
from analysis.run import question as run_question
from analysis.tables.runs import Flags
from diagnostics.runlog import RunLog

ORDER = 3
SHOWN = ("no_never", "dpo_all")  # the cases of these worlds that get a page of their own
WORLDS = ("persona", "refusal")


def take(logs: Sequence[RunLog], scores: Sequence[Flags]) -> tuple[Demo | None, list[RunLog], Sequence[Flags]]:
    """The demo's runs, where there are two, with all score folders."""
    own = [log for log in logs if tables.is_demo(log)]
    if len(own) < 2:
        return None, list(logs), scores
    return tables.collect(own, list(scores)), [log for log in logs if not tables.is_demo(log)], []


def pages(found: Demo) -> list[Page]:
    """All side by side; then one run a case and one score folder."""
    given = {"run_dirs": [str(r.path) for r in found.logs], "flag_dirs": [str(f.path) for f in found.scores]}
    whole = Page("demo_report", "The demo, side by side", given, "demo")
    return [whole, *run_question.pages(examples(found)), *flag_question.pages(found.scores[:1])]


def entries(found: Demo) -> list[Headline]:
    """Its headline, then every run's verdict and every score folder's."""
    judged = claims.judge(found)
    head = Headline("The demo", page.headline(found), claims.overall(judged), [c.finding() for c in judged])
    return [head, *run_question.entries(found.logs), *flag_question.entries(found.scores)]


def examples(found: Demo) -> list[RunLog]:
    """One run a case: that of the lowest seed and prompt."""
    ordered = sorted(found.logs, key=lambda r: (str(r.config.get("demo_seed")), str(r.config.get("demo_prompt"))))
    first: dict[tuple[str, str], RunLog] = {}
    for log in ordered:
        first.setdefault((tables.world(log), str(log.config.get("demo_case"))), log)
    return [log for (world, case), log in first.items() if case in SHOWN or world not in WORLDS]
