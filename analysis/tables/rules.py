"""Whether measured values obey a claim's rule, how surely, and what is left of many verdicts. No run is read here.

A rule is one of above, below (strictly), at_least, at_most, and between (two ends). A claim's kind says who must obey:

    mean    the mean over the seeds: its whole 95 % interval must obey, or break, the rule
    every   each seed: one that breaks it refutes the claim
    some    at least one seed: one that obeys shows the claim
    exact   the value itself, where nothing is drawn
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from analysis.show.wording import percent
from analysis.tables.intervals import deviation, half_width, mean

LEVEL = 0.05
KINDS = ("mean", "every", "some", "exact")


class Ruling(NamedTuple):
    """value: the mean, or the value that decides; interval: 95 %, where it is judged by one; holds: True, False, or
    None where it cannot be said; p: the chance to find the mean this far from the rule's border, on either side, if it
    lay on it (NaN where no mean is judged); note: what else is to be said."""

    value: float
    interval: tuple[float, float] | None
    holds: bool | None
    p: float = math.nan
    note: str = ""


def judged(
    values: np.ndarray,
    rule: Mapping[str, Any],
    kind: str = "mean",
    *,
    geometric: bool = False,
    interval: tuple[float, float] | None = None,
) -> Ruling:
    """Hold finite values, one a seed, against a rule. geometric: of ratios, whose logarithms are averaged; interval:
    95 %, where it comes from elsewhere."""
    if not len(values):
        return Ruling(math.nan, None, None)
    if kind == "exact":
        return Ruling(float(values[0]), (float(values[0]), float(values[0])), obeys(values[0], rule))
    if kind != "mean":
        return _counted(values, rule, kind == "every")
    if interval is not None:
        return Ruling(mean(values), interval, decide(interval, rule), _p_of_interval(mean(values), interval, rule))
    return _mean(values, rule, geometric)


def decide(interval: tuple[float, float] | None, rule: Mapping[str, Any]) -> bool | None:
    """True where a whole interval obeys the rule, False where all of it breaks it, None where it lies on both sides or
    is missing."""
    if interval is None or any(math.isnan(v) for v in interval):
        return None
    ends = [obeys(end, rule) for end in interval]
    if all(ends):
        return True
    inside = "between" in rule and interval[0] < rule["between"][0] and interval[1] > rule["between"][1]
    return None if any(ends) or inside else False


def within(interval: tuple[float, float] | None, ends: Sequence[float] | None) -> tuple[float, float] | None:
    """An interval cut at the ends of what a quantity can be by nature: Student's over a few seeds knows none, and
    passes 1 for a share near it. ends: None for a quantity without."""
    if interval is None or ends is None:
        return interval
    return max(interval[0], float(ends[0])), min(interval[1], float(ends[1]))


def obeys(value: float, rule: Mapping[str, Any]) -> bool:
    """Whether one value obeys the rule."""
    ((kind, aim),) = rule.items()
    if kind == "between":
        return bool(aim[0] <= value <= aim[1])
    return bool({"above": value > aim, "at_least": value >= aim, "below": value < aim, "at_most": value <= aim}[kind])


def words(rule: Mapping[str, Any], kind: str = "mean") -> str:
    """The rule as a person reads it."""
    ((name, aim),) = rule.items()
    said = f"{aim[0]:g} to {aim[1]:g}" if name == "between" else f"{name.replace('_', ' ')} {aim:g}"
    return {"every": "in every seed ", "some": "in some seed "}.get(kind, "") + said.replace("-", "−")


def bound(n: int) -> float:
    """1 - .05^(1/n): the largest share of seeds (95 %) that may be otherwise where n of n agree."""
    return 1 - LEVEL ** (1 / n)


def survivors(ps: Sequence[float]) -> np.ndarray:
    """Which of many verdicts stand at a false-discovery rate of 5 %, by Benjamini and Hochberg (1995): with the p in
    order, the first k for the largest k with p_k <= .05 k / m. ps: m values; a NaN is no verdict and never stands."""
    given = np.asarray(ps, dtype=float)
    known = np.isfinite(given)
    stand = np.zeros(len(given), dtype=bool)
    if known.any():
        stand[known] = stats.false_discovery_control(given[known]) <= LEVEL
    return stand


def _counted(values: np.ndarray, rule: Mapping[str, Any], every: bool) -> Ruling:
    """Every: one seed that breaks the rule refutes it; where none does, it holds of so many, and the bound says what
    that is worth. Some: one seed that obeys shows it, and no number of others refutes it."""
    n, good = len(values), sum(obeys(v, rule) for v in values)
    value, most = _farthest(values, rule, worst=every), percent(bound(n))
    if every and good < n:
        return Ruling(value, None, False, note=f"broken in {n - good} of {n} seeds; shown: the worst")
    if every:
        said = f"obeyed in {n} of {n} seeds, shown: the worst; up to {most} of all seeds may still break it"
        return Ruling(value, None, True, note=said)
    if good:
        return Ruling(value, None, True, note=f"seen in {good} of {n} seeds; shown: the best")
    said = f"seen in none of {n} seeds, shown: the best; up to {most} of all seeds may still show it"
    return Ruling(value, None, None, note=said)


def _farthest(values: np.ndarray, rule: Mapping[str, Any], worst: bool) -> float:
    """The value that breaks the rule most, or the one that obeys it best."""
    ((kind, aim),) = rule.items()
    if kind == "between":
        badness = np.abs(values - (aim[0] + aim[1]) / 2)
    else:
        badness = values if kind in ("below", "at_most") else -values
    return float(values[np.argmax(badness) if worst else np.argmin(badness)])


def _mean(values: np.ndarray, rule: Mapping[str, Any], geometric: bool) -> Ruling:
    """Student's t over the seeds. Seeds that all gave one number have an interval without width, which is no evidence:
    they are judged by their count, as a sign test does."""
    on_scale, back = (np.log(values), np.exp) if geometric else (values, lambda v: v)
    middle, n = mean(on_scale), len(values)
    value = float(back(middle))
    if n < 2:
        return Ruling(value, None, None)
    if np.allclose(values, values[0], rtol=1e-9, atol=0):
        p = min(1.0, 2 * 0.5**n)
        said = f"{n} seeds of one and the same value: judged by their number (sign test)"
        return Ruling(value, None, obeys(value, rule) if p <= LEVEL else None, p, said)
    half = half_width(on_scale)
    interval = (float(back(middle - half)), float(back(middle + half)))
    scale = deviation(on_scale) / math.sqrt(n)
    borders = np.log(_borders(rule)) if geometric else np.array(_borders(rule))
    p = 2 * float(stats.t.sf(np.abs(borders - middle).min() / scale, n - 1))
    return Ruling(value, interval, decide(interval, rule), p)


def _p_of_interval(value: float, interval: tuple[float, float], rule: Mapping[str, Any]) -> float:
    """By the normal distribution with the spread of the interval on the side of the border; NaN without an interval."""
    low, high = interval
    if not (math.isfinite(value) and low < high):
        return math.nan
    sides = [(abs(b - value), (value - low) if b < value else (high - value)) for b in _borders(rule)]
    return 2 * float(stats.norm.sf(min(d / w if w > 0 else math.inf for d, w in sides) * stats.norm.ppf(1 - LEVEL / 2)))


def _borders(rule: Mapping[str, Any]) -> list[float]:
    (aim,) = rule.values()
    return [float(v) for v in (aim if isinstance(aim, list) else [aim])]
