"""Margin-adaptive DPO: each pair weighted by its reward-model margin. arXiv 2510.05342."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, require_between, require_positive
from trainers.objectives.dpo import dpo

NEEDS = ("reference",)
COLUMNS = ("chosen_score", "rejected_score")
PROVENANCE = "code"


def madpo(
    pair: PairStats, *, beta: float = 0.1, c_max: float = 2.0, slope: float = 1.0, tau: float = 2.0
) -> ObjectiveOutput:
    """DPO with more weight on pairs of a small reward margin, less on those of a large one. arXiv 2510.05342 (MADPO).

    losses = w * dpo(beta); (B,), lower is better; rewards as in dpo. h is the reward model's margin, the column
    `chosen_score` minus the column `rejected_score` (its own units, log-odds), and
    w = sigmoid(c h) / sigmoid(h) where h > -tau, else 1, with
    c = c_min + (c_max - c_min) / (1 + (c_max - 1) / (1 - c_min) * exp(slope * (|h| - tau))) and c_min = 1 / c_max.
    c falls from near c_max at h = 0 through 1 at |h| = tau to c_min; slope is the paper's lambda. So 0 < h < tau is
    amplified, h > tau damped, and -tau < h < 0, where the reward model disagrees a little, damped. c_max = 1 makes
    every weight 1, which is dpo.
    Defaults are those of the authors' class; their notebook has tau = log 999 = 6.9. The weights are data, without
    gradient. The loss of a pair still sees the margin of log-ratios only, so that both likelihoods can fall.
    """
    require_positive(slope=slope, tau=tau)
    require_between(1, math.inf, closed=False, c_max=c_max)
    preference = dpo(pair, beta=beta)
    margins = column(pair, "chosen_score") - column(pair, "rejected_score")
    return preference._replace(losses=_weights(margins, c_max, slope, tau) * preference.losses)


def _weights(margins: Tensor, c_max: float, slope: float, tau: float) -> Tensor:
    """(B,) weights of reward margins; with c_min = 1 / c_max the factor before the exponential is c_max."""
    c_min = 1 / c_max
    c = c_min + (c_max - c_min) * torch.sigmoid(slope * (tau - margins.abs()) - math.log(c_max))
    return torch.where(margins > -tau, torch.exp(logsigmoid(c * margins) - logsigmoid(margins)), 1.0)
