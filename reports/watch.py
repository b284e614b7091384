"""A run that is still going, in the terminal: verdict, four numbers, and the share that fell by step."""

import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from analysis.run import card, kept, live
from analysis.run.advice import advise
from analysis.run.page import tiles_of
from analysis.show import units
from analysis.tables import displacement, runs
from diagnostics.errors import DataError, printable
from diagnostics.runlog import RunLog
from reports import tables

STYLES = {card.BROKEN: "bold red", card.WATCH: "bold yellow", card.NORMAL: "bold green", card.UNMEASURED: "bold"}
BAR = 30  # characters of a share of 100 %
PATIENCE = 3  # looks in a row at which a log that is being written may be unreadable
STEPS = 12  # measured steps shown, the last ones


def watch(path: Path, *, every: float = 5.0, once: bool = False, console: Console | None = None) -> None:
    """Show the run, and again every so many seconds, until no process writes to it. once: show it a single time.

    Raises DataError where there is no run, or its log stays unreadable.
    """
    console = console or Console()
    if not runs.is_run(path):
        raise DataError(
            f"{path}: no run there yet. Give a folder that `chesboard train`, `trace` or a callback writes."
        )
    run = runs.load(path) if once else _read(path, every)
    if once or not live.of(run).going:
        console.print(view(run))
        return
    with Live(view(run), console=console, auto_refresh=False) as shown:
        while live.of(run).going:
            time.sleep(every)
            run = _read(path, every)
            shown.update(view(run), refresh=True)


def _read(path: Path, every: float) -> RunLog:
    """The run; a log is between two files for a moment when it ends."""
    for _ in range(PATIENCE - 1):
        try:
            return runs.load(path)
        except DataError:
            time.sleep(every)
    return runs.load(path)


def view(run: RunLog) -> Group:
    """Everything that is shown of it."""
    found, going = kept.verdict_of(run), live.of(run)
    state = card.state(run, found)
    lines = [Text(f"{card.SIGNS[state.word]} {state.word}", STYLES[state.word]), Text(printable(state.says))]
    lines += [Text(printable(f"Mass: {mass}"))] if (mass := card.went_to(run, state)) else []
    if not going.going:  # until then the run itself is what comes next
        lines += [Text(printable(f"Next: {one.what} {one.caveat}".strip())) for one in advise(run, state, found)]
    numbers = tables.table("what", "value", "")
    for tile in tiles_of(run, found):
        tables.add(numbers, tile.label, tile.value, "; ".join(tile.below))
    framed = Panel(Group(*lines), title=Text(printable(run.name)))
    return Group(Text(live.words(going)), framed, numbers, _shares(run))  # a low terminal cuts what is last


def _shares(run: RunLog) -> Table | Text:
    """A bar a measured step: the share of the probe pairs whose chosen answer fell, and of the held-out ones."""
    probe, held = ({r["step"]: r for r in _by_step(run, split) if r["n"]} for split in ("probe", "eval"))
    if not probe:
        return Text("No probe pair is measured yet.")
    made = tables.table("step", units.of(run).tiles["fell"], "", "held out")
    for step, row in list(probe.items())[-STEPS:]:
        tables.add(made, int(step), bar(row["share"]), _percent(row["share"]), _percent(held.get(step, _NONE)["share"]))
    return made


def _by_step(run: RunLog, split: str) -> list[dict[Any, Any]]:
    return displacement.by_step(runs.rows(run, split)).to_dict("records")


_NONE = {"share": math.nan}


def bar(share: float) -> str:
    """A share as a bar, whole where it is 1."""
    return "█" * round(BAR * share) + "·" * (BAR - round(BAR * share))


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.0%}"
