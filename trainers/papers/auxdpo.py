"""Why DPO is misspecified: a bandit of three answers whose policy has one parameter. Exact, in milliseconds.

The policy is (e^t, e^-t, 1) / Z, the reference t = 0, the true reward (1, 2, 0). Preferences follow Bradley-Terry; only
how often each pair is compared changes. No t fits all three preferences, so the fit goes where the comparisons are
many, and its reward may fall below the reference's. AuxDPO adds to the implicit rewards a vector from the null space of
sum_y ref(y) grad log policy(y) delta(y): here any delta with delta_1 = delta_2. arXiv:2510.20413 (read in
a summary; the numbers for each count are recomputed).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize, minimize_scalar

from diagnostics.tables import Field
from trainers.papers import Setting
from trainers.studies.paper_runs import Order

SEEDS = 1  # nothing is drawn
TUNED = range(0)
DATA = ""
TRUE = np.array([1.0, 2.0, 0.0])
DIRECTION = np.array([1.0, -1.0, 0.0])  # d log(unnormalised policy) / dt
SETTINGS = (
    Setting("comparisons of the third pair", [1, 5, 20, 100], "summary; its own counts are not known", [1, 5, 20, 100]),
    Setting("beta values", [1.0, 2.0, 5.0], "not known", [1.0, 2.0, 5.0]),
)
TABLES = {
    "optima": {
        "method": Field(str, "a name of METHODS"),
        "beta": Field(float, "of the objective"),
        "n": Field(float, "comparisons of the third pair, for one of each other"),
        "t": Field(float, "the policy's parameter at the optimum"),
        "reward": Field(float, "true reward of that policy; the reference has 1"),
        "reversed": Field(bool, "whether answer 1 is likelier than answer 2"),
        **{f"p{k}": Field(float, f"probability of answer {k}") for k in (1, 2, 3)},
    },
}


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The optimum of each method for each beta and count."""
    counts = sorted({*settings["comparisons of the third pair"], *np.unique(np.geomspace(1, 100, 41).round()).tolist()})
    rows = [_row(m, float(n), beta) for beta in settings["beta values"] for n in counts for m in METHODS]
    return {"optima": pd.DataFrame(rows)}


def policy(t: float) -> np.ndarray:
    """Probabilities of the three answers, (3,)."""
    weights = np.exp(t * DIRECTION)
    return weights / weights.sum()


def dpo(n: float, beta: float) -> float:
    """The t that minimises the population DPO loss. n: comparisons of answers 3 and 1, for one of each other pair."""

    def loss(t: float) -> float:
        margin = _margins(beta * t * DIRECTION)
        return float(_counts(n) @ (_chances() * np.logaddexp(0, -margin) + (1 - _chances()) * np.logaddexp(0, margin)))

    return _minimum(loss)


def ipo(n: float, beta: float) -> float:
    """The t that minimises the population IPO loss, margin of log-ratios against 1 / (2 beta); arXiv:2310.12036."""

    def loss(t: float) -> float:
        margin, aim = _margins(t * DIRECTION), 1 / (2 * beta)
        return float(_counts(n) @ (_chances() * (margin - aim) ** 2 + (1 - _chances()) * (margin + aim) ** 2))

    return _minimum(loss)


def auxdpo(n: float, beta: float) -> float:
    """The t of AuxDPO: population DPO of the implicit rewards plus delta = (a, a, 0), minimised over t and a."""

    def loss(x: np.ndarray) -> float:
        margin = _margins(beta * x[0] * DIRECTION + np.array([x[1], x[1], 0.0]))
        return float(_counts(n) @ (_chances() * np.logaddexp(0, -margin) + (1 - _chances()) * np.logaddexp(0, margin)))

    found: Any = minimize(
        loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15, "maxiter": 9999}
    )
    return float(found.x[0])


def best(n: float, beta: float) -> float:
    """The t that DPO stands for: the one that maximises reward - beta KL(policy || reference)."""

    def loss(t: float) -> float:
        p = policy(t)
        return float(beta * p @ np.log(3 * p) - p @ TRUE)

    return _minimum(loss)


METHODS = {"DPO": dpo, "IPO": ipo, "AuxDPO": auxdpo, "reward − β KL": best}
_PAIRS = ((0, 1), (1, 2), (2, 0))


def _minimum(loss: Callable[[float], float]) -> float:
    found: Any = minimize_scalar(loss, bracket=(-1, 1), tol=1e-12)
    return float(found.x)


def _row(method: str, n: float, beta: float) -> dict[str, Any]:
    t = METHODS[method](n, beta)
    p = policy(t)
    chances = {f"p{k + 1}": float(v) for k, v in enumerate(p)}
    return dict(method=method, beta=beta, n=n, t=t, reward=float(p @ TRUE), reversed=bool(p[0] > p[1])) | chances


def _counts(n: float) -> np.ndarray:
    return np.array([1.0, 1.0, n])


def _margins(rewards: np.ndarray) -> np.ndarray:
    return np.array([rewards[i] - rewards[j] for i, j in _PAIRS])


def _chances() -> np.ndarray:
    """Bradley-Terry probability that the first of each pair is preferred, under the true reward."""
    return 1 / (1 + np.exp(-_margins(TRUE)))
