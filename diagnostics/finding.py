"""Finding: one judged number, with everything needed to say it honestly. No torch."""

from dataclasses import dataclass


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
