"""Preference optimization by an f-divergence between the policy's and the wanted preference. arXiv 2410.21662."""

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

Divergence = Literal["js", "jeffreys", "hellinger", "alpha"]
_LOG_TARGET = (0.0, -10.0)  # of chosen and rejected; not made to sum to 1


def fpo(pair: PairStats, *, beta: float = 0.1, divergence: Divergence = "js", alpha: float = 0.5) -> ObjectiveOutput:
    """Bring the policy's preference g near the target t in an f-divergence. arXiv 2410.21662 (f-PO), EXO generalised.

    losses = divergence(g, t) in nats, (B,), lower is better, with g = softmax(beta * u, beta * v) and t = (1, e^-10),
    not normalised, as in the authors' code; u and v are the log-ratios (policy - reference, nats, summed over
    completion tokens) of chosen and rejected. Sums run over the two answers:
    - js: Jensen-Shannon, 1/2 sum g log(g/m) + 1/2 sum t log(t/m) with m = (g + t) / 2.
    - jeffreys: sum (g - t) (log g - log t), both Kullback-Leibler divergences added.
    - hellinger: sum (sqrt g - sqrt t)^2, without a factor 1/2.
    - alpha: 1 / (a (a - 1)) * sum t [(g/t)^(1 - a) - (1 - a) g/t - a]; 0.5 in the authors' code, which is
      twice hellinger. Towards a = 1 it is KL(t || g) + 1 - sum t, towards 0 KL(g || t) - 1 + sum t, EXO's with this t.
    rewards = beta * u and beta * v. beta is the authors' beta_pi: their command line has 1, the value behind the
    paper's results was not found; 0.1 is EXO's.
    As t sums to 1 + e^-10 and g to 1, g never equals t: the least loss, at a reward margin of 10, is about 1e-9 and not
    0. The code's targets of K scored answers are not offered: this is the pair.
    All but jeffreys are bounded, so that a pair ordered very wrongly has almost no gradient. The target is finite
    (a reward margin of 10), which ends the pull apart; the loss sees u - v only, and both likelihoods can fall.
    """
    require_positive(beta=beta, alpha=alpha)
    require_between(0, 1, closed=False, alpha=alpha)
    require_choice(get_args(Divergence), divergence=divergence)
    chosen, rejected = logratios(pair)
    margins = beta * (chosen - rejected)
    log_g = torch.stack([logsigmoid(margins), logsigmoid(-margins)])
    log_t = log_g.new_tensor(_LOG_TARGET)[:, None]
    return rewarded(_divergence(log_g, log_t, divergence, alpha).sum(0), beta * chosen, beta * rejected)


def _divergence(log_g: Tensor, log_t: Tensor, divergence: str, alpha: float) -> Tensor:
    """(2, B) terms of the divergence, to be summed over the two answers."""
    g, t = log_g.exp(), log_t.exp()
    if divergence == "js":
        log_m = torch.logaddexp(log_g, log_t) - math.log(2)
        return (g * (log_g - log_m) + t * (log_t - log_m)) / 2
    if divergence == "jeffreys":
        return (g - t) * (log_g - log_t)
    if divergence == "hellinger":
        return ((log_g / 2).exp() - (log_t / 2).exp()) ** 2
    return ((alpha * log_t + (1 - alpha) * log_g).exp() - (1 - alpha) * g - alpha * t) / (alpha * (alpha - 1))
