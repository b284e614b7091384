"""What counts as a fall, and how hard the rejected answer is pushed: one definition for run log and pages. No torch."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

MIN_EFFECT = 0.01  # nats per answer, a likelihood 1 % lower: a smaller change is no movement, however certain
# by kind of likelihood, in its unit; that of a denoising error is a quarter of a nat at B 5000 (own)
MIN_EFFECTS = {"tokens": MIN_EFFECT, "steps": MIN_EFFECT, "denoising": 1e-4}
STRONG = 100.0  # a push ratio above this: the rejected answer drives nearly everything


def fell(change: Any, noise: Any = 0.0) -> Any:
    """1.0 where a log-prob fell, change < -least(noise), in nats; 0.0 where not; NaN where it was not measured, so
    that a mean over it is the share of what was measured. Numbers, arrays, Series or DataFrames."""
    return np.heaviside(-change - least(noise), 0.0)


def rose(change: Any, noise: Any = 0.0) -> Any:
    """1.0 where a log-prob rose, change > least(noise), in nats; else as `fell`."""
    return np.heaviside(change - least(noise), 0.0)


def least(noise: Any = 0.0) -> Any:
    """What a change of a log-prob must exceed to be a movement: the noise as `noise` gives it; MIN_EFFECT where it is
    0 or was not measured."""
    return np.where(np.greater(noise, 0.0), noise, MIN_EFFECT)


def noise(parity: Mapping[str, Any] | None, kind: str = "tokens") -> float:
    """A change within this is no movement, in nats or in what this kind of likelihood is counted in: the noise found at
    the start of the run, or the difference that policy and reference, then the same model, had where that is larger
    (manifest.json, parity), and never less than MIN_EFFECTS. Where the check failed they were two models, whose
    difference is no noise. A log without `noise` has its noise_floor, which was made to pass the parity check."""
    parity = parity or {}
    own = "noise" if "noise" in parity else "noise_floor"
    keys = (own,) if parity.get("passed") is False else (own, "max_difference")
    found = [parity.get(key) for key in keys]
    measured = [float(v) for v in found if isinstance(v, (int, float)) and math.isfinite(v)]
    return max(*measured, MIN_EFFECTS[kind]) if measured else MIN_EFFECTS[kind]


def log_push_ratio(chosen_logps: Any, rejected_logps: Any) -> Any:
    """ln of how much harder a loss of the margin pushes the rejected answer's probability than the chosen one's.

    |dL/d pi(y-)| / |dL/d pi(y+)| = pi(y+) / pi(y-) for any loss of ln pi(y+) - ln pi(y-) (DPO, IPO): its log is
    ln pi(y+) - ln pi(y-), in nats. It diverges as the rejected answer fades, and the chosen one's own push vanishes.
    Source: arXiv 2404.04626 (gradients in probability space).
    """
    return chosen_logps - rejected_logps


def is_strong(log_ratio: Any) -> Any:
    """Whether the push ratio lies above STRONG; False for NaN."""
    return log_ratio > math.log(STRONG)
