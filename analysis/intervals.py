"""How sure a number is: Wilson intervals for shares, seeded bootstrap intervals for means and rank correlations."""

import math
import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

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


def half_width(values: ArrayLike) -> float:
    """Half of the 95 % Student t interval of the mean, t(n - 1) * SD / sqrt(n); NaN below two values.

    For a handful of seeds: a bootstrap of three values could never leave their range.
    """
    n = len(finite(values))
    return float(stats.t.ppf(0.975, n - 1)) * deviation(values) / math.sqrt(n) if n > 1 else math.nan


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman rank correlation over rows where both are finite; NaN below three rows or without spread."""
    a, b = _both(x, y)
    return float(_rank_correlation(a, b)) if len(a) > 2 else math.nan


def spearman_interval(x: ArrayLike, y: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of Spearman's rho, pairs resampled together; NaN below five rows."""
    a, b = _both(x, y)
    if len(a) < 5 or math.isnan(float(_rank_correlation(a, b))):
        return NOTHING
    rng = np.random.default_rng(seed)
    pick = rng.integers(0, len(a), (_resamples(len(a)), len(a)))
    rhos = finite(_rank_correlation(a[pick], b[pick]))
    return float(np.quantile(rhos, 0.025)), float(np.quantile(rhos, 0.975))


def partial_spearman(x: ArrayLike, y: ArrayLike, given: ArrayLike) -> float:
    """Spearman of x and y with the rank of `given` held fixed:
    (r_xy - r_xg r_yg) / sqrt((1 - r_xg^2)(1 - r_yg^2)). NaN where x or y is `given` in disguise."""
    keep = np.isfinite(np.asarray([x, y, given], dtype=float)).all(0)
    x, y, given = (np.asarray(v, dtype=float)[keep] for v in (x, y, given))
    xy, xg, yg = spearman(x, y), spearman(x, given), spearman(y, given)
    if math.isnan(xg) and math.isnan(yg):
        return math.nan
    xg, yg = np.nan_to_num(xg), np.nan_to_num(yg)  # a constant `given` explains nothing
    rest = (1 - xg**2) * (1 - yg**2)
    return float((xy - xg * yg) / math.sqrt(rest)) if rest > 1e-9 else math.nan


def auroc(score: ArrayLike, positive: ArrayLike) -> float:
    """Chance that a positive row scores higher than a negative one, ties half. NaN where one class is missing."""
    score, positive = np.asarray(score, dtype=float), np.asarray(positive, dtype=bool)
    score, positive = score[np.isfinite(score)], positive[np.isfinite(score)]
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if n_positive == 0 or n_negative == 0:
        return math.nan
    ranks = stats.rankdata(score)[positive]
    return float((ranks.mean() - (n_positive + 1) / 2) / n_negative)


def _both(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    keep = np.isfinite(a) & np.isfinite(b)
    return a[keep], b[keep]


def _resamples(n: int) -> int:
    return int(np.clip(5_000_000 // n, 200, RESAMPLES))


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of mid-ranks along the last axis; NaN where one side is constant."""
    ranks = [stats.rankdata(v, axis=-1) for v in (a, b)]
    ranks = [r - r.mean(-1, keepdims=True) for r in ranks]
    top = (ranks[0] * ranks[1]).sum(-1)
    bottom = np.sqrt((ranks[0] ** 2).sum(-1) * (ranks[1] ** 2).sum(-1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.where(bottom > 0, top / bottom, math.nan)
