"""How sure a number is: Wilson intervals for shares, Newcombe's for paired ones, Student t for means, Fisher z for
rank correlations."""

import math
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.tables import weighted

RESAMPLES = 1000
Z = float(stats.norm.ppf(0.975))
NOTHING = (math.nan, math.nan)


def wilson(hits: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share p = hits / n; (NaN, NaN) for n = 0. Wilson 1927.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), with z = 1.96. scipy's binomtest, to which the
    tests hold this, takes whole hits only (a mean of several runs' shares has none) and computes a p-value too.
    """
    if n == 0:
        return NOTHING
    p, z2n = hits / n, Z**2 / n
    half = Z * math.sqrt(p * (1 - p) / n + z2n / (4 * n))
    return max(0.0, (p + z2n / 2 - half) / (1 + z2n)), min(1.0, (p + z2n / 2 + half) / (1 + z2n))


def finite(values: ArrayLike) -> np.ndarray:
    """The finite values as float64: a NaN is a row that was not measured."""
    array = np.asarray(values, dtype=float)
    return array[np.isfinite(array)]


def mean(values: ArrayLike) -> float:
    """Mean of the finite values; NaN where there is none."""
    array = finite(values)
    return float(array.mean()) if len(array) else math.nan


def deviation(values: ArrayLike) -> float:
    """Standard deviation (n - 1) of the finite values; NaN below two."""
    array = finite(values)
    return float(array.std(ddof=1)) if len(array) > 1 else math.nan


def mean_interval(values: ArrayLike) -> tuple[float, float]:
    """95 % Student t interval of the mean of the finite values, mean -+ t(n - 1) SD / sqrt(n).

    (NaN, NaN) for fewer than two, and where they do not vary: equal values do not say how far another would lie.
    A percentile bootstrap would miss the mean in 14 % of samples of five.
    """
    array = finite(values)
    if len(array) < 2 or array.min() == array.max():
        return NOTHING
    middle, half = float(array.mean()), half_width(array)
    return middle - half, middle + half


def share_interval(shares: ArrayLike, counts: ArrayLike) -> tuple[float, float]:
    """95 % interval of the mean of several runs' shares, each of so many rows; within [0, 1].

    The wider end of two: Student t over the runs, and Wilson over all rows together, which holds where there is one
    run or where the runs agree by chance. (NaN, NaN) where nothing was measured.
    """
    share, n = (np.asarray(v, dtype=float) for v in (shares, counts))
    known = np.isfinite(share) & (n > 0)
    if not known.any():
        return NOTHING
    share, n = share[known], n[known]
    low, high = wilson(float(share.mean() * n.sum()), int(n.sum()))
    half = half_width(share) if len(share) > 1 else 0.0
    return max(0.0, min(low, float(share.mean()) - half)), min(1.0, max(high, float(share.mean()) + half))


def paired_share_interval(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """95 % interval of (share of the second) - (share of the first), where the same rows were counted twice.

    both, first, second, neither: rows that were counted both times, the first time only, the second only, and never.
    Wilson's intervals of the two shares, joined with their correlation: Newcombe 1998 (Statistics in Medicine 17,
    2635), method 10. McNemar's test looks at the same counts, and gives no size. (NaN, NaN) without a row.
    """
    n = both + first + second + neither
    if n == 0:
        return NOTHING
    hits = both + first, both + second
    before, after = hits[0] / n, hits[1] / n
    (low_b, high_b), (low_a, high_a) = (wilson(k, n) for k in hits)
    spread = math.sqrt(math.prod((hits[0], n - hits[0], hits[1], n - hits[1])))
    agree = both * neither - first * second
    agree = max(agree - n / 2, 0.0) if agree > 0 else agree
    phi = agree / spread if spread else 0.0
    down, up = (after - low_a, high_b - before), (high_a - after, before - low_b)
    low, high = (math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b)) for a, b in (down, up))
    return after - before - low, after - before + high


def geometric_mean(values: ArrayLike) -> float:
    """Geometric mean of the finite values, for ratios; NaN where there is none or one is not above 0."""
    array = finite(values)
    return float(np.exp(np.log(array).mean())) if len(array) and (array > 0).all() else math.nan


def half_width(values: ArrayLike) -> float:
    """Half of the 95 % Student t interval of the mean, t(n - 1) * SD / sqrt(n); NaN below two values.

    For a handful of seeds: a bootstrap of three values could never leave their range.
    """
    n = len(finite(values))
    return _t(n) * deviation(values) / math.sqrt(n) if n > 1 else math.nan


@cache
def _t(n: int) -> float:
    """The 97.5 % point of Student's t for n values."""
    return float(stats.t.ppf(0.975, n - 1))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman rank correlation over rows where both are finite; NaN below three rows or without spread."""
    a, b = _both(x, y)
    return float(weighted.spearman(a, b, weighted.draws(0, len(a)))[0])


def spearman_interval(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """95 % interval of Spearman's rho, tanh(artanh rho -+ z sqrt((1 + rho^2 / 2) / (n - 3))); Bonett and Wright 2000.

    NaN below five rows, without spread, and where the ranks agree entirely.
    """
    a, b = _both(x, y)
    rho = spearman(a, b)
    if len(a) < 5 or not abs(rho) < 1 - 1e-12:
        return NOTHING
    half = Z * math.sqrt((1 + rho**2 / 2) / (len(a) - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def auroc(score: ArrayLike, positive: ArrayLike) -> float:
    """Chance that a positive row scores higher than a negative one, ties half. NaN where one class is missing."""
    score, positive = np.asarray(score, dtype=float), np.asarray(positive, dtype=float)
    positive, score = positive[np.isfinite(score)], score[np.isfinite(score)]
    return float(weighted.auroc(score, positive, weighted.draws(0, len(score)))[0])


def percentiles(found: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of a statistic whose first value is the statistic and the others its bootstrap draws;
    NaN where the statistic itself is."""
    drawn = finite(found[1:])
    if not len(drawn) or math.isnan(found[0]):
        return NOTHING
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def resamples(n: int) -> int:
    """How many bootstrap draws of n rows are worth their time."""
    return int(np.clip(5_000_000 // max(n, 1), 200, RESAMPLES))


def _both(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    keep = np.isfinite(a) & np.isfinite(b)
    return a[keep], b[keep]
