"""How well a predictor ranks pairs, with row weights: a weight of 2 counts a row twice, so a bootstrap is one matrix.

x (n,): the predictor, finite, higher = predicted more displaced; y (n,): what happened; fell (n,): 0 or 1;
w (R, n): whole numbers, one draw a row. Every statistic returns (R,), NaN where a draw cannot tell.
scikit-learn's auroc and average precision, to which the tests hold these, take one draw a call (200 times as long for a
thousand), know no strata, and warn, or say 0, where no pair fell.
"""

import math

import numpy as np

Array = np.ndarray


def draws(rows: int, n: int, seed: int = 0) -> Array:
    """(rows + 1, n) weights: first every row once, then bootstrap draws of n out of n."""
    picked = np.random.default_rng(seed).integers(0, max(n, 1), (rows, n)) + n * np.arange(rows)[:, None]
    drawn = np.bincount(picked.ravel(), minlength=rows * n).reshape(rows, n)
    return np.vstack([np.ones((1, n)), drawn])


def ranks(x: Array, w: Array) -> Array:
    """(R, n) mid-rank of each row among the rows that its draw holds."""
    group, totals = _grouped(x, w)
    upto = totals.cumsum(1)
    return (upto - (totals - 1) / 2)[:, group]


def spearman(x: Array, y: Array, w: Array) -> Array:
    """Spearman rank correlation; NaN without spread, or below three rows."""
    if len(x) < 3:
        return np.full(len(w), math.nan)
    a, b = (_centred(ranks(v, w), w) for v in (x, y))
    return _ratio((w * a * b).sum(1), np.sqrt((w * a * a).sum(1) * (w * b * b).sum(1)))


def partial_spearman(x: Array, y: Array, given: Array, w: Array) -> Array:
    """Spearman of x and y with the rank of `given` held fixed:
    (r_xy - r_xg r_yg) / sqrt((1 - r_xg^2)(1 - r_yg^2)). A constant `given` explains nothing."""
    xy = spearman(x, y, w)
    xg, yg = (np.nan_to_num(spearman(v, given, w)) for v in (x, y))
    rest = (1 - xg**2) * (1 - yg**2)
    return _ratio(xy - xg * yg, np.sqrt(np.where(rest > 1e-9, rest, 0.0)))


def auroc(x: Array, fell: Array, w: Array, strata: Array | None = None) -> Array:
    """Chance that a pair that fell stands above one that did not, ties half; with strata, of two from the same one."""
    wins, of = np.zeros(len(w)), np.zeros(len(w))
    for stratum in (np.zeros(len(x), bool),) if strata is None else (strata != s for s in np.unique(strata)):
        inside = ~stratum
        part, hit = w[:, inside], w[:, inside] * fell[inside]
        positive, negative = hit.sum(1), (part - hit).sum(1)
        wins += (hit * ranks(x[inside], part)).sum(1) - positive * (positive + 1) / 2
        of += positive * negative
    return _ratio(wins, of)


def average_precision(x: Array, fell: Array, w: Array) -> Array:
    """Sum over thresholds of (recall gained) times (precision there): no interpolation, ties enter together."""
    hits, totals = _descending(x, fell, w)
    precision = hits.cumsum(1) / np.maximum(totals.cumsum(1), 1)
    return _ratio((hits * precision).sum(1), hits.sum(1))


def precision_at(x: Array, fell: Array, w: Array, share: float) -> Array:
    """Share that fell of the highest `share` of the rows (at least one); a tie at the border counts in part."""
    hits, totals = _descending(x, fell, w)
    count = np.maximum(1, np.round(share * w.sum(1)))[:, None]
    taken = np.clip(count - (totals.cumsum(1) - totals), 0, totals)
    return _ratio((taken * hits / np.maximum(totals, 1)).sum(1), count[:, 0])


def strata_of(values: Array) -> Array:
    """Number of the quantile stratum of each row: up to ten of ten rows or more; equal values share one."""
    n = len(values)
    count = int(np.clip(n // 10, 2, 10))
    middle = ranks(values, np.ones((1, n)))[0] - 0.5
    return np.minimum((middle / max(n, 1) * count).astype(int), count - 1)


def within(x: Array, strata: Array) -> Array:
    """Place of each row in its stratum, from 0 to 1."""
    place = np.zeros(len(x))
    for s in np.unique(strata):
        inside = strata == s
        one = np.ones((1, int(inside.sum())))
        place[inside] = (ranks(x[inside], one)[0] - 0.5) / one.sum()
    return place


def _grouped(x: Array, w: Array) -> tuple[Array, Array]:
    """Number of each row's distinct value in rising order, and (R, groups) weights of the values."""
    values, group = np.unique(x, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(values)))
    return group, np.add.reduceat(w[:, order], starts, axis=1) if len(x) else np.zeros((len(w), 0))


def _descending(x: Array, fell: Array, w: Array) -> tuple[Array, Array]:
    """(R, groups) weight of the rows that fell, and of all, by value from the highest down."""
    return tuple(_grouped(x, v)[1][:, ::-1] for v in (w * fell, w))  # pyright: ignore[reportReturnType]


def _centred(values: Array, w: Array) -> Array:
    return values - ((w * values).sum(1) / w.sum(1))[:, None]


def _ratio(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.full(len(top), math.nan), where=bottom > 1e-12)
