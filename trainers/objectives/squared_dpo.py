"""SquaredPO: DPO under the non-convex f(t) = (log t)^2 / 2. arXiv 2602.06788."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive, rewarded

NEEDS = ("reference",)
PROVENANCE = "secondary"

_LARGEST = 80.0  # e^80 is still a float32


def squared_dpo(pair: PairStats, *, beta: float = 0.1) -> ObjectiveOutput:
    """DPO under an f whose minimum is at the reference, made to resist displacement. arXiv 2602.06788 (SquaredPO).

    losses = -log sigmoid(beta * (log(t_w) / t_w - log(t_l) / t_l)), t the probability ratio policy / reference of the
    whole chosen (w) and rejected (l) answer; (B,), lower is better, log 2 where policy = reference. In log-ratios u
    and v (nats, summed over completion tokens) log(t) / t is u * exp(-u).
    The formula is secondary: read in notes on the paper, its algebra checked, the paper itself not read. The default
    of beta was not found; 0.1 is DPO's.
    The exponent -u is clamped at 80; an answer that has lost more goes on as u * e^80.
    rewards = beta * u and beta * v. f(t) = (log t)^2 / 2 has its minimum at t = 1, where that of reverse KL is at 1/e:
    the lower the chosen answer falls, the harder it is held. The score u * exp(-u) is largest at u = 1: the chosen
    answer is pulled up to e times its probability under the reference and back beyond that, and a rejected answer
    above that point is pushed up.
    """
    require_positive(beta=beta)
    chosen, rejected = logratios(pair)
    losses = -logsigmoid(beta * (_score(chosen) - _score(rejected)))
    return rewarded(losses, beta * chosen, beta * rejected)


def divergence(t: Tensor) -> Tensor:
    """f(t) = (log t)^2 / 2, t = policy / reference > 0. f' = log(t) / t is the score of the loss."""
    return t.log() ** 2 / 2


def _score(x: Tensor) -> Tensor:
    """(B,) log(t) / t at t = e^x."""
    return x * torch.exp((-x).clamp(max=_LARGEST))
