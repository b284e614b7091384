"""Whether a run is still going: from its lock, its finished mark and the age of its log."""

import time
from dataclasses import dataclass

from analysis.tables import runs
from diagnostics import folder
from diagnostics.runlog import RunLog


@dataclass(frozen=True)
class Live:
    """step: the last one logged, -1 where none was; age: seconds since the last row was written."""

    going: bool
    finished: bool
    step: int
    age: float


def of(run: RunLog) -> Live:
    """How far the run is. It is going while a process holds its folder, or the folder of the job that it is part of,
    and has not marked it as finished."""
    finished = bool(run.manifest.get("finished"))
    places = run.path.resolve(), *run.path.resolve().parents[:2]
    step = int(runs.column(run.steps, "step").to_numpy().max()) if len(run.steps) else -1
    return Live(not finished and any(map(folder.writer, places)), finished, step, _age(run))


def words(found: Live) -> str:
    """One sentence."""
    step = f"step {found.step}" if found.step >= 0 else "no step yet"
    if found.going:
        return f"This run is still going: {step}, the last row {ago(found.age)} ago. What is said here may change."
    if found.finished:
        return f"This run has finished, at {step}."
    return f"No process is writing to this run: it ends at {step}, {ago(found.age)} ago."


def ago(seconds: float) -> str:
    """A time that has passed, in its two largest units."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((i for i, (n, _) in enumerate(parts) if n), 3)
    return " ".join(f"{n} {unit}" for n, unit in parts[first : first + 2])


def _age(run: RunLog) -> float:
    rows = [p for p in (run.path / "steps.jsonl", *(run.path / "pairs").glob("*")) if p.is_file()]
    return max(0.0, time.time() - max((p.stat().st_mtime for p in rows), default=time.time()))
