"""Metrics: how many points of 100 an answer about a clip gets by the true one."""

import re
from collections import Counter
from collections.abc import Callable

import numpy as np

from trainers.worlds.checkers import normal

Span = tuple[float, float]  # start and end of an event, in the answers' own unit
_NUMBER = r"(?<![\d:.])(\d{1,9}(?:\.\d+)?)(?!\d|[:.]\d)"  # no part of a clock's time, 1:05
_SPAN = re.compile(rf"{_NUMBER}\s*(?:s|seconds?)?\s*(?:to|and|until|-|–|,)\s*{_NUMBER}")  # the wording is ours


def words(truth: str, answer: str) -> float:
    """F1 of the words that both have, each as often as both have it; marks and case do not count. It is the usual
    metric of short answers."""
    wanted, given = normal(truth), normal(answer)
    return 100 * _f1(sum((Counter(wanted) & Counter(given)).values()), len(wanted), len(given))


def soda_d(truth: str, answer: str) -> float | None:
    """SODA's variant d (Fujita et al., ECCV 2020): the F-measure of the overlap in time (intersection over union) of
    the events that both tell of, matched in their order so that the overlap in all is largest. What they say of the
    events does not count. None where the true answer names no times ("from 3 to 7").
    """
    wanted, given = spans(truth), spans(answer)
    if not wanted:
        return None
    best = np.zeros((len(wanted) + 1, len(given) + 1))  # of the first i and j events
    for i, one in enumerate(wanted):
        for j, other in enumerate(given):
            best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], best[i, j] + _overlap(one, other))
    return 100 * _f1(float(best[-1, -1]), len(wanted), len(given))


def spans(text: str) -> list[Span]:
    """The times that a text names, "from 3 to 7" or "3.5 - 7 s", in its order; without those that end before they
    start."""
    found = [(float(a), float(b)) for a, b in _SPAN.findall(text.lower())]
    return [(start, end) for start, end in found if end >= start]


def _overlap(one: Span, other: Span) -> float:
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    whole = one[1] - one[0] + other[1] - other[0] - shared
    return shared / whole if whole else float(one == other)


def _f1(shared: float, wanted: int, given: int) -> float:
    """F-measure of shared / given and shared / wanted."""
    return 2 * shared / (wanted + given) if wanted + given else 0.0


METRICS: dict[str, Callable[[str, str], float | None]] = {"words": words, "soda_d": soda_d}
