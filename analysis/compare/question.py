"""What do several objectives do to the same pairs?"""

from collections.abc import Sequence

from analysis.compare import board, verdict
from analysis.compare.board import Board
from analysis.questions import Headline, Page
from analysis.tables.runs import Flags
from diagnostics.runlog import RunLog

ORDER = 1


def take(logs: Sequence[RunLog], scores: Sequence[Flags]) -> tuple[Board | None, list[RunLog], Sequence[Flags]]:
    """The runs of a board, where there are two; none of them gets a page of its own."""
    own = [log for log in logs if board.is_board(log)]
    if len(own) < 2:
        return None, list(logs), scores
    return board.collect(own), [log for log in logs if not board.is_board(log)], scores


def pages(found: Board) -> list[Page]:
    """The board."""
    given = {"run_dirs": [str(run.path) for run in found.logs]}
    return [Page("objective_board", "The board: objectives side by side", given, "board")]


def entries(found: Board) -> list[Headline]:
    """Its headline."""
    return [Headline("The board", verdict.headline(found), None, verdict.findings(found))]
