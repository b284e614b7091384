"""Gates: judge a run by a declarative file, so that CI can stop a run that displaced.

A gates file is YAML: a list of gates, or `gates:` with one. `chesboard gate --example` prints templates/gates.yaml.
"""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from rich.console import Console

from analysis.run import kept
from analysis.tables import paired, runs
from diagnostics import outcomes
from diagnostics.errors import DataError, UserError, printable
from diagnostics.finding import Finding
from diagnostics.names import nearest
from diagnostics.plain_yaml import read_plain
from diagnostics.runlog import RunLog
from reports import tables

EXAMPLE = Path(__file__).resolve().parent / "templates" / "gates.yaml"

REDUCE: dict[str, Callable[[np.ndarray, float], float]] = {
    "mean": lambda v, _: float(v.mean()),
    "median": lambda v, _: float(np.median(v)),
    "min": lambda v, _: float(v.min()),
    "max": lambda v, _: float(v.max()),
    "sum": lambda v, _: float(v.sum()),
    "last": lambda v, _: float(v[-1]),
    "share_below": lambda v, bound: float((v < bound).mean()),
    "share_above": lambda v, bound: float((v > bound).mean()),
}
OPS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


class Gate(BaseModel):
    """One gate: `aggregate` of `metric` over `window` of `table` must be `op` `value`.

    table: steps (steps.jsonl), pairs (probe pairs unless `split` says otherwise; also chosen_change,
    rejected_change and margin_change, nats since step 0, 0 where that is no movement, and chosen_fell, rejected_fell,
    1 where that side fell, by diagnostics.outcomes), scores (scores.parquet) or verdict (what the run's page says: one
    number each, under the names in verdict.json; displaced is 1 or 0, and no data where the verdict cannot be said).
    window: all | last | last N | steps a..b, counted in steps at which the metric was measured.
    aggregate `last` is the value at the last such step (in pairs and scores: of the last row).
    share_below and share_above: share of rows below or above `bound`. severity warning: reported, never fails a run.
    against baseline: not the number but its difference to that of another run (run minus baseline), over the pairs that
    both measured at the last such step, judged by its 95 % interval: passed where all of the interval is `op` `value`,
    missed where none of it is, and else not clear, which is reported and never fails; by the number alone where every
    pair differs by the same. Of pairs alone, by mean, share_below or share_above, in the window last. Intervals:
    Newcombe's for shares, Student t for other means.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    table: Literal["steps", "pairs", "scores", "verdict"]
    metric: str = Field(min_length=1)
    split: Literal["train", "probe", "eval"] = "probe"
    aggregate: Literal["mean", "median", "min", "max", "sum", "last", "share_below", "share_above"]
    bound: float = Field(default=0.0, strict=True, allow_inf_nan=False)
    window: str = Field(default="last", pattern=r"^(all|last( [1-9][0-9]{0,11})?|steps [0-9]{1,12}\.\.[0-9]{1,12})$")
    op: Literal["<", "<=", ">", ">="]
    value: float = Field(strict=True, allow_inf_nan=False)
    severity: Literal["error", "warning"] = "error"
    against: Literal["baseline"] | None = None

    @model_validator(mode="after")
    def _of_pairs(self) -> "Gate":
        fits = self.table == "pairs" and self.aggregate in ("mean", "share_below", "share_above")
        if self.against and not (fits and self.window == "last"):
            raise ValueError("against baseline works on pairs, by mean, share_below or share_above, in the window last")
        return self

    @property
    def title(self) -> str:
        """The gate's name, or what it says."""
        apart = " against the baseline" if self.against else ""
        return self.name or f"{self.aggregate} of {self.metric}{apart} {self.op} {self.value:g}"


@dataclass(frozen=True)
class GateFinding(Finding):
    """A Finding that knows whether a miss fails the run."""

    severity: str = "error"


def judge(
    run_path: Path, gates_path: Path, junit_path: Path | None = None, baseline: Path | None = None
) -> list[GateFinding]:
    """Judge a run (or score folder) by a gates file; write JUnit XML when asked. A gate without data fails.

    baseline: the run that gates `against: baseline` hold this one against. Raises UserError for a gates file that
    cannot be used, DataError for a run that cannot be read, or shares no measured pair with the baseline.
    """
    began = perf_counter()
    gates = read_gates(Path(gates_path))
    _require_baseline(gates, Path(gates_path), baseline)
    read = _tables(Path(run_path), gates)
    apart = _Apart(runs.load(baseline), runs.load(run_path)) if baseline else None
    findings, seconds = [], []
    for gate in gates:
        start = perf_counter()
        findings.append(_judge_apart(gate, apart) if gate.against and apart else _judge(gate, read))
        seconds.append(perf_counter() - start)
    if junit_path:
        write_junit(Path(junit_path), findings, Path(run_path).resolve().name, seconds, perf_counter() - began)
    return findings


@dataclass(frozen=True)
class _Apart:
    """Two runs on the same pairs. Raises DataError where they share none that was measured."""

    before: RunLog
    after: RunLog

    def __post_init__(self) -> None:
        paired.require_shared(self.before, self.after)


def _require_baseline(gates: list[Gate], path: Path, baseline: Path | None) -> None:
    """UserError where a gate needs a baseline and none is given, or the other way round."""
    apart = [gate for gate in gates if gate.against]
    if apart and not baseline:
        raise UserError(f"{path}: gate '{apart[0].title[:120]}' is against a baseline. Give one with --baseline RUN.")
    if baseline and not apart:
        raise UserError(f"{path}: no gate is `against: baseline`; `chesboard gate --example` shows one.")


def failed(findings: Sequence[Finding]) -> bool:
    """Whether the exit code must be 1: some gate of severity error was missed."""
    return any(f.passed is False and getattr(f, "severity", "error") == "error" for f in findings)


def warnings(findings: Sequence[Finding]) -> list[str]:
    """`::warning::` lines for GitHub, one for every missed gate of severity warning, and every one not clear."""
    missed = [f for f in findings if not f.passed and not failed([f])]
    return ["::warning::" + printable(f.meaning).replace("%", "%25") for f in missed]


def show(findings: Sequence[Finding]) -> bool:
    """Print one line a gate, and a `::warning::` line for each missed warning; True when no gate failed."""
    found = tables.table("gate", "value", "n", "verdict", "meaning")
    for f in findings:
        verdict = "pass" if f.passed else "FAIL" if failed([f]) else "not clear" if f.passed is None else "warning"
        tables.add(found, f.name, f"{f.value:.6g}", f.n, verdict, f.meaning)
    Console().print(found)
    tables.say(*warnings(findings))
    return not failed(findings)


def read_gates(path: Path) -> list[Gate]:
    """The gates of a file. Raises UserError naming file, gate and field."""
    content = read_plain(path)
    if isinstance(content, dict) and list(content) == ["gates"]:
        content = content["gates"]
    if not isinstance(content, list) or not content:
        raise UserError(
            f"{path}: holds no gates. Write a list of gates, each with table, metric, aggregate, op and value; "
            "`chesboard gate --example` prints one."
        )
    try:
        return TypeAdapter(list[Gate]).validate_python(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from None


def write_junit(
    path: Path, findings: Sequence[GateFinding], suite: str, seconds: Sequence[float], total: float
) -> None:
    """One testcase a gate, in the one testsuite of a testsuites root, as every CI reads it. A missed warning is a pass
    with a note. seconds: how long each gate took to judge; total: all of it, reading too."""
    missed = [f for f in findings if failed([f])]
    counts = {"tests": str(len(findings)), "failures": str(len(missed)), "errors": "0", "time": f"{total:.3f}"}
    root = ET.Element("testsuites", counts)
    started = datetime.now(UTC) - timedelta(seconds=total)
    about = {"name": _xml(suite), "timestamp": started.strftime("%Y-%m-%dT%H:%M:%S")}
    cases = ET.SubElement(root, "testsuite", about | counts)
    for f, took in zip(findings, seconds, strict=True):
        case = ET.SubElement(cases, "testcase", classname="gates", name=_xml(f.name), time=f"{took:.3f}")
        if f in missed:
            ET.SubElement(case, "failure", message=_xml(f.meaning)).text = _xml(f.meaning)
        else:
            ET.SubElement(case, "system-out").text = _xml(f.meaning)
    ET.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    number_, *field = first["loc"] or (0,)
    words = f"gate {int(number_) + 1}" + (f", {'.'.join(map(str, field))[:80]}" if field else "")
    if first["type"] == "extra_forbidden":
        near = nearest(str(field[-1]), Gate.model_fields)
        return f"{words}: no such field{f'; did you mean {near[0]}?' if near else '.'}"
    if first["type"] == "string_pattern_mismatch":
        return f"{words}: write all, last, last N (as in `last 3`) or steps a..b (as in `steps 10..40`)."
    return f"{words}: {first['msg'][:1].lower() + first['msg'][1:]}."


def _tables(path: Path, gates: list[Gate]) -> dict[str, pd.DataFrame]:
    """The tables the gates ask for, pairs by split as `pairs/<split>`."""
    found: dict[str, pd.DataFrame] = {}
    if any(g.table == "scores" for g in gates):
        found["scores"] = runs.load_flags(path).scores
    if any(g.table != "scores" for g in gates):
        run = runs.load(path)
        found["steps"] = _steps(run)
        found |= {f"pairs/{g.split}": _pairs(run, g.split) for g in gates if g.table == "pairs"}
        found |= {g.table: _verdict(run) for g in gates if g.table == "verdict"}
    if not found:
        raise DataError(f"{path}: nothing to judge.")
    return found


def _pairs(run: RunLog, split: str) -> pd.DataFrame:
    """Pair rows with chosen_fell and rejected_fell; a change that is no movement counts as 0, so that no gate fails on
    rounding."""
    rows = runs.rows(run, split)
    if rows.empty:
        return rows
    fell = {f"{side}_fell": runs.fell(rows, side) for side in runs.SIDES}
    changes = rows[["chosen_change", "rejected_change", "margin_change"]]
    still = changes.abs() <= outcomes.least(runs.noise(run))
    return rows.assign(**changes.mask(still, 0.0), **fell)


def _steps(run: RunLog) -> pd.DataFrame:
    """steps.jsonl, in which the share of pairs that fell is counted as everywhere else, whatever wrote the log."""
    steps = run.steps.copy()
    for split in ("probe", "eval"):
        key, rows = f"{split}/displacement/frac", runs.rows(run, split)
        if key in steps and len(rows):
            change = runs.column(rows, "chosen_logps") - runs.column(rows, "ref_chosen_logps")
            shares = outcomes.fell(change, runs.noise(run)).groupby(rows["step"]).mean()
            steps[key] = steps["step"].map(shares).where(steps[key].notna()).fillna(steps[key])
    return steps


def _verdict(run: RunLog) -> pd.DataFrame:
    """One row: the value of every finding of the run's verdict, and whether it displaced."""
    first, *others = kept.verdict_of(run)
    displaced = math.nan if first.passed is None else float(not first.passed)
    row = pd.DataFrame([{first.name: displaced} | {f.name: f.value for f in others}], dtype=float)
    row.attrs["n"] = {f.name: f.n for f in (first, *others)}
    return row


def _judge(gate: Gate, read: dict[str, pd.DataFrame]) -> GateFinding:
    table = read[f"pairs/{gate.split}" if gate.table == "pairs" else gate.table]
    values = _values(gate, table)
    value = REDUCE[gate.aggregate](values, gate.bound) if len(values) else math.nan
    passed = len(values) > 0 and OPS[gate.op](value, gate.value)
    n = table.attrs.get("n", {}).get(gate.metric, len(values)) if len(values) else 0
    verb = {True: "passed", False: "missed"}[passed]
    what = f"{value:.4g}, wanted {gate.op} {gate.value:g}" if len(values) else "no data"
    meaning = f"{gate.title}: {verb}, {gate.aggregate} of {gate.metric} ({gate.window}) is {what} (n = {n})"
    return GateFinding(gate.title, value, n, None, gate.value, passed, meaning, gate.severity)


def _judge_apart(gate: Gate, apart: _Apart) -> GateFinding:
    """The difference of run and baseline, by its interval."""
    columns = [_by_pair(gate, _pairs(run, gate.split)) for run in (apart.before, apart.after)]
    ids = [i for i in columns[0].index if i not in paired.other_texts(apart.before, apart.after)]
    found = paired.difference(columns[0].loc[ids], columns[1])
    alike = found.n > 1 and math.isnan(found.interval[0])  # every pair differs by the same, or by infinity
    low, high = (found.value, found.value) if alike else found.interval
    ends = [OPS[gate.op](end, gate.value) for end in (low, high)]
    unlike, early = paired.unlike_steps(apart.before, apart.after)
    clear = low == low and ends[0] == ends[1] and not early
    passed = False if not found.n else ends[0] if clear else None
    verb = {True: "passed", False: "missed", None: "not clear"}[passed]
    interval = f"95 %: {low:.4g} to {high:.4g}" if low == low and not alike else "no interval"
    went = f"{found.before:.4g} to {found.after:.4g}, a difference of {found.value:.4g} ({interval})"
    told = f"went from {went}, wanted {gate.op} {gate.value:g}" if found.n else "has no data"
    meaning = f"{gate.title}: {verb}, {gate.aggregate} of {gate.metric} on the same pairs {told} (n = {found.n})"
    meaning += f"; {unlike}" if unlike else ""
    return GateFinding(gate.title, found.value, found.n, found.interval, gate.value, passed, meaning, gate.severity)


def _by_pair(gate: Gate, table: pd.DataFrame) -> pd.Series:
    """The metric by pair_id at the last step that measured it; 1 and 0 for a share below or above the bound."""
    if table.empty:
        return pd.Series(dtype=float)
    rows = table.loc[table["pair_id"].notna()].reset_index(drop=True)
    values = _measured(gate, rows)
    column = pd.Series(values[gate.metric].to_numpy(dtype=float), index=values["pair_id"])
    column = column.loc[~column.index.duplicated(keep="last")]
    if gate.aggregate == "mean":
        return column
    return (column < gate.bound if gate.aggregate == "share_below" else column > gate.bound).astype(float)


def _values(gate: Gate, table: pd.DataFrame) -> np.ndarray:
    """The measured values inside the window, in step order."""
    if table.empty:
        return np.array([])
    return _measured(gate, table)[gate.metric].to_numpy(dtype=float)  # infinities stay: a gate must see them


def _measured(gate: Gate, table: pd.DataFrame) -> pd.DataFrame:
    """The rows inside the window in which the metric was measured, in step order."""
    if gate.metric not in table or not pd.api.types.is_numeric_dtype(table[gate.metric]):
        raise UserError(_no_metric(gate, table))
    measured = table.loc[table[gate.metric].notna()]
    if "step" in measured:
        measured = measured.sort_values("step", kind="stable")
        measured = measured.loc[measured["step"].isin(_window(gate.window, sorted(measured["step"].unique())))]
    return measured


def _window(window: str, steps: list[int]) -> list[int]:
    if window == "all":
        return steps
    bounds = re.fullmatch(r"steps (\d+)\.\.(\d+)", window)
    if bounds:
        return [s for s in steps if int(bounds[1]) <= s <= int(bounds[2])]
    return steps[-int(window.removeprefix("last") or 1) :]


def _no_metric(gate: Gate, table: pd.DataFrame) -> str:
    known = [c for c in table.columns if pd.api.types.is_numeric_dtype(table[c])]
    near = nearest(gate.metric, known, cutoff=0)
    hint = f"; the nearest is {near[0]}" if near else ""
    return f"gate '{gate.title[:120]}': {gate.table} has no metric {gate.metric[:80]}{hint}."


def _xml(text: str) -> str:
    """Text without the characters XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text)
