"""Alarms: conditions on what the run logs, judged at every evaluation; one that holds long enough warns or stops.

`displacement/frac > 0.8 for 3`: the value was above 0.8 at three evaluations in a row. An evaluation is a row of
steps.jsonl after step 0 that measured the key; a key without prefix that the probe measures means probe/.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diagnostics.errors import UserError
from diagnostics.names import nearest

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
PROBED = ("probe", "eval")
DYNAMIC = ("track/", "grad/", "grad_norm/", "probe/response/")  # keys that only the run itself knows

_FORM = re.compile(r"(?P<key>\S+?)\s*(?P<op>>=|<=|>|<)\s*(?P<limit>[^\s<>=]+)(?:\s+for\s+(?P<count>[1-9]\d*))?")


@dataclass(frozen=True)
class Condition:
    """`key op limit` at `count` evaluations in a row."""

    key: str
    op: str
    limit: float
    count: int = 1

    def __str__(self) -> str:
        return f"{self.key} {self.op} {self.limit:g}" + (f" for {self.count}" if self.count > 1 else "")


class Alarms:
    """Counts, for every condition, the evaluations in a row at which it held. A resumed run counts anew."""

    def __init__(self, conditions: Sequence[Condition] = (), *, stop: bool = False) -> None:
        self.stop = stop  # whether one of them ends the training
        self.counts = dict.fromkeys(conditions, 0)
        self.seen: set[str] = set()

    def judge(self, row: Mapping[str, Any]) -> list[str]:
        """What sets in at this row of steps.jsonl, one sentence each: said once, and again only after it had passed."""
        found = []
        for condition in self.counts:
            value = float(row.get(condition.key, math.nan))
            if math.isnan(value):
                continue
            self.seen.add(condition.key)
            holds = OPERATORS[condition.op](value, condition.limit)
            self.counts[condition] = self.counts[condition] + 1 if holds else 0
            if self.counts[condition] == condition.count:
                found.append(f"{condition} (step {row['step']}: {value:.4g})")
        return found

    def require(self, row: Mapping[str, Any]) -> None:
        """UserError where step 0, which probes everything, lacks a probed key: such an alarm could never fire."""
        for condition in self.counts:
            if condition.key.startswith((*PROBED, "track/")) and condition.key not in row:
                near = nearest(condition.key, row)
                raise UserError(
                    f"alarm '{condition}': this run does not measure {condition.key}"
                    + (f"; the nearest key that it does is {near[0]}." if near else ".")
                )

    def unseen(self) -> list[str]:
        """Conditions whose key was never measured."""
        return [str(c) for c in self.counts if c.key not in self.seen]


def parse(text: Any, *, probed: Sequence[str], steps: Sequence[str]) -> list[Condition]:
    """The conditions of an `alarm` key: several separated by `;`, or a list.

    probed: keys that every probe measures (logged as probe/KEY and eval/KEY); steps: the other keys of steps.jsonl.
    Raises UserError with the sentence that says what is wrong, and the nearest key.
    """
    parts = text if isinstance(text, list) else str(text).split(";")
    return [_condition(part, probed, steps) for part in (str(p).strip() for p in parts) if part]


def _condition(text: str, probed: Sequence[str], steps: Sequence[str]) -> Condition:
    found = _FORM.fullmatch(text)
    limit = _number(found["limit"]) if found else math.nan
    if not found or math.isnan(limit):
        raise UserError(f"alarm '{text[:80]}' cannot be read; write for example: displacement/frac > 0.8 for 3")
    key, full = found["key"], [f"{split}/{name}" for split in PROBED for name in probed]
    if key not in (*probed, *steps, *full) and not key.startswith(DYNAMIC):
        near = nearest(key, [*probed, *steps, *full], cutoff=0.4)
        hint = (
            f"did you mean {near[0]}?" if near else f"the keys are, among others, {', '.join((*probed, *steps)[:8])}."
        )
        raise UserError(f"alarm '{text[:80]}': nothing that is logged is called {key[:80]}; {hint}")
    return Condition(f"probe/{key}" if key in probed else key, found["op"], limit, int(found["count"] or 1))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
