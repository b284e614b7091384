"""Preference optimization as likelihood-ratio matching by Bregman divergences. arXiv 2505.19601."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives import (
    ObjectiveOutput,
    logratios,
    require_between,
    require_choice,
    require_positive,
    rewarded,
)

NEEDS = ("reference",)
PROVENANCE = "paper"

Divergence = Literal["lr", "kliep", "lsif", "ba", "sba"]
_LARGEST = 80.0  # e^80 is still a float32


def bpo(
    pair: PairStats, *, beta: float = 0.1, divergence: Divergence = "sba", k: float = 1.2, s: float = 4.0
) -> ObjectiveOutput:
    """Match the ratio R = e^(-beta (u - v)) to the data's by a Bregman divergence. arXiv 2505.19601 (BPO).

    losses = h'(R) R - h(R) - h'(1/R) up to a factor and a constant, (B,), lower is better; u and v are the log-ratios
    (policy - reference, nats, summed over completion tokens) of chosen and rejected:
    - lr: log(1 + R), which is dpo.
    - kliep: R + log R.
    - lsif: R^2 - 2 / R. The equation as printed could be read as R^2 - 2 R; deriving it from h gives this one.
    - ba: R^(k + 1) - (k + 1) / k * R^(-k); at k = 1 lsif.
    - sba (the paper's scaled one): R^(k + 1) / (s (k + 1)) - R^(-k) / (s k) = ba / (s (k + 1)). With s = 4 its slope
      where policy = reference is that of lr.
    At k = 0 ba is its limit R + log R and sba (R + log R) / s, without the constant -1/k or -1/(s k) that grows
    there: values jump, gradients do not. k > -1 is the paper's lambda: 1.2 was best on HH, 0 to 1.5 good, 2 and more
    bad; other tasks' values and the paper's beta were not found (0.1 is DPO's).
    lr is bounded below; with k >= 0 the others are not, they reward ever larger margins, and with k > 0 the slope of ba
    and sba grows on either side, of well ordered pairs too.
    Exponents (of R^2, 1/R, R^(k + 1), R^(-k)) are clamped at 80: beyond it such a term stays what it is and its
    gradient is 0. rewards = beta * u and beta * v. The loss sees u - v only, so that both likelihoods can fall.
    """
    require_positive(beta=beta, s=s)
    require_between(-1, math.inf, closed=False, k=k)
    if k == -1:
        raise UserError("k is -1; it must be a number above -1.")
    require_choice(get_args(Divergence), divergence=divergence)
    chosen, rejected = logratios(pair)
    losses = _loss(-beta * (chosen - rejected), divergence, k)
    if divergence == "sba":
        losses = losses / (s * (k + 1))
    return rewarded(losses, beta * chosen, beta * rejected)


def _loss(log_ratio: Tensor, divergence: str, k: float) -> Tensor:
    """(B,) loss at R = e^log_ratio; for sba still to be scaled."""
    if divergence == "lr":
        return -logsigmoid(-log_ratio)  # exact where softplus turns linear
    if divergence == "lsif":
        return _power(log_ratio, 2) - 2 * _power(log_ratio, -1)
    if divergence == "kliep" or k == 0:
        return _power(log_ratio, 1) + log_ratio
    return _power(log_ratio, k + 1) - (k + 1) / k * _power(log_ratio, -k)


def _power(log_ratio: Tensor, exponent: float) -> Tensor:
    """(B,) R to the exponent, at most e^80."""
    return torch.exp((exponent * log_ratio).clamp(max=_LARGEST))
