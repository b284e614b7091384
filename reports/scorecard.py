"""The scorecard of finished runs: a table for the terminal, a Parquet file and one page."""

from collections.abc import Sequence
from pathlib import Path

from analysis.questions import Page, slug
from analysis.scorecard import page as scorecard_page
from analysis.scorecard.predictors import Scorecard
from analysis.tables.runs import is_run
from diagnostics.errors import DataError
from diagnostics.runlog import write_frame
from reports.notebooks import beside, execute


def make(run_dirs: Sequence[Path], scores: Sequence[Path], out: Path | None = None) -> tuple[Scorecard, Path]:
    """Judge every predictor on these runs (seeds of one setting) and write scorecard.parquet and scorecard.html.

    scores: scores.parquet of the runs' data, none, one for all runs or one for each. out: default is report/ in the
    first run. Returns the scorecard and its page.
    """
    for path in run_dirs:
        if not is_run(path):
            raise DataError(f"{path}: is no run folder. Give what `chesboard train` wrote; scores go to --scores.")
    given = {"run_dirs": [str(p.resolve()) for p in run_dirs], "scores": [str(p.resolve()) for p in scores]}
    found = scorecard_page.load(**given)
    out = (out or run_dirs[0] / "report").resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_frame(out / "scorecard.parquet", found.card)
    page = Page("scorecard", "Scorecard: which predictor to trust", given, "scorecard")
    own = [(f"run-{slug(path.resolve().name)}.html", f"Run {path.resolve().name}") for path in run_dirs]
    links = [(address, title) for address, title in own if (out / address).is_file()]
    return found, execute(page, out, links, beside(out))
