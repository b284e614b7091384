"""Finding: one judged number, with everything needed to say it honestly. No torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One verdict.

    value: the number, NaN where nothing was measured; n: the rows behind it.
    interval: 95 % interval (low, high) or None; threshold: what it was held against, or None.
    passed: True or False where there is a threshold, else None; meaning: one sentence for a person.
    """

    name: str
    value: float
    n: int
    interval: tuple[float, float] | None
    threshold: float | None
    passed: bool | None
    meaning: str

    def as_json(self) -> dict[str, Any]:
        """The finding as a JSON object: null for NaN, which JSON does not know."""
        return {name: _finite(value) for name, value in asdict(self).items()}


def from_json(found: Mapping[str, Any]) -> Finding:
    """The finding that was written so. Raises KeyError or TypeError where it is none."""
    bounds = found["interval"]
    interval = None if bounds is None else (_number(bounds[0]), _number(bounds[1]))
    threshold, passed = found["threshold"], found["passed"]
    return Finding(str(found["name"]), _number(found["value"]), int(found["n"]), interval, threshold, passed,
                   str(found["meaning"]))  # fmt: skip


def _finite(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
