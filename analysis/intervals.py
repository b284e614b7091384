"""How sure a number is: Wilson intervals for shares, seeded bootstrap intervals for means and rank correlations."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis import weighted

RESAMPLES = 1000
Z = float(stats.norm.ppf(0.975))
NOTHING = (math.nan, math.nan)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share p = hits / n; (NaN, NaN) for n = 0. Wilson 1927.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), with z = 1.96.
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


def mean_interval(values: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean; (NaN, NaN) for fewer than two rows."""
    array = finite(values)
    if len(array) < 2:
        return NOTHING
    rng = np.random.default_rng(seed)
    batch = max(1, 2_000_000 // len(array))
    found = stats.bootstrap(
        (array,), np.mean, n_resamples=RESAMPLES, method="percentile", batch=batch, rng=rng
    ).confidence_interval
    return float(found.low), float(found.high)


def geometric_mean(values: ArrayLike) -> float:
    """Geometric mean of the finite values, for ratios; NaN where there is none or one is not above 0."""
    array = finite(values)
    return float(np.exp(np.log(array).mean())) if len(array) and (array > 0).all() else math.nan


def half_width(values: ArrayLike) -> float:
    """Half of the 95 % Student t interval of the mean, t(n - 1) * SD / sqrt(n); NaN below two values.

    For a handful of seeds: a bootstrap of three values could never leave their range.
    """
    n = len(finite(values))
    return float(stats.t.ppf(0.975, n - 1)) * deviation(values) / math.sqrt(n) if n > 1 else math.nan


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman rank correlation over rows where both are finite; NaN below three rows or without spread."""
    a, b = _both(x, y)
    return float(weighted.spearman(a, b, weighted.draws(0, len(a)))[0])


def spearman_interval(x: ArrayLike, y: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of Spearman's rho, pairs resampled together; NaN below five rows."""
    a, b = _both(x, y)
    if len(a) < 5:
        return NOTHING
    return percentiles(weighted.spearman(a, b, weighted.draws(resamples(len(a)), len(a), seed)))


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
