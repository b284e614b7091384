"""DPO under other f-divergences than reverse KL. arXiv 2309.16240."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

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
PROVENANCE = "code"

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
_LARGEST = 80.0  # e^80 is still a float32


def fdpo(
    pair: PairStats, *, beta: float = 0.1, divergence: Divergence = "reverse_kl", alpha: float = 0.5
) -> ObjectiveOutput:
    """DPO whose implicit reward is that of another f-divergence to the reference. arXiv 2309.16240 (f-DPO).

    losses = -log sigmoid(beta * (f'(e^u) - f'(e^v))), u and v the log-ratios (policy - reference, nats, summed over
    completion tokens) of chosen and rejected; (B,), lower is better, log 2 where policy = reference. With x = u or v:
    - reverse_kl: f' = x, which is dpo.
    - forward_kl: f' = -exp(-x). TRL adds a 1, which cancels.
    - js: f' = log 2 + log sigmoid(x).
    - alpha: f' = (1 - exp(-alpha * x)) / alpha with the paper's alpha: near 0 it is reverse_kl, at 1 forward_kl.
      TRL's f_alpha_divergence_coef is one minus the paper's alpha; at the default of both, 0.5, this hides.
    The exponents -x and -alpha * x are clamped at 80 (TRL does so for alpha only): beyond it f' stays what it is and
    its gradient is 0. With forward_kl that happens once a completion has lost 80 nats.
    rewards = beta * u and beta * v for every divergence, as TRL logs them. beta is 0.1 in TRL.
    Except for reverse_kl a log-ratio counts less the larger it is, so that the gradient on an answer grows as its
    likelihood falls; only the difference is trained all the same, and both likelihoods can fall.
    """
    require_positive(beta=beta, alpha=alpha)
    require_between(0, 1, alpha=alpha)
    require_choice(get_args(Divergence), divergence=divergence)
    chosen, rejected = logratios(pair)
    margins = _derivative(chosen, divergence, alpha) - _derivative(rejected, divergence, alpha)
    return rewarded(-logsigmoid(beta * margins), beta * chosen, beta * rejected)


def divergence(t: Tensor, divergence: Divergence = "reverse_kl", alpha: float = 0.5) -> Tensor:
    """f(t) whose f' the loss uses, t = policy / reference > 0. arXiv 2309.16240; f' of reverse_kl without its 1."""
    if divergence == "reverse_kl":
        return t * t.log()
    if divergence == "forward_kl":
        return -t.log()
    if divergence == "js":
        return t * t.log() - (t + 1) * ((t + 1) / 2).log()
    if alpha == 1:
        return t - 1 - t.log()
    return (t ** (1 - alpha) - (1 - alpha) * t - alpha) / (alpha * (alpha - 1))


def _derivative(x: Tensor, divergence: str, alpha: float) -> Tensor:
    """(B,) f' at the probability ratio e^x."""
    if divergence == "reverse_kl":
        return x
    if divergence == "forward_kl":
        return -torch.exp((-x).clamp(max=_LARGEST))
    if divergence == "js":
        return math.log(2) + logsigmoid(x)
    return -torch.expm1((-alpha * x).clamp(max=_LARGEST)) / alpha
