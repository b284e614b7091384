"""DPO with ties, Rao-Kupper model. arXiv 2409.17431."""

import math

import torch
from torch.nn.functional import logsigmoid

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, logratios, require_between, require_positive, rewarded

NEEDS = ("reference",)
COLUMNS = ("tie",)
PROVENANCE = "derivation"


def dpo_rk(pair: PairStats, *, beta: float = 0.1, nu: float = 3.0) -> ObjectiveOutput:
    """DPO that also learns from tied pairs, by the Rao-Kupper model of ties. arXiv 2409.17431 (DPO-RK).

    losses = -log sigmoid(d - log nu) for a clear preference, and -log sigmoid(d - log nu) - log sigmoid(-d - log nu)
    - log(nu^2 - 1) where the column `tie` is not 0; d = beta * (u - v), u and v the log-ratios (policy - reference,
    nats, summed over completion tokens) of chosen and rejected; (B,), lower is better. They are the negative logs of
    the model's probabilities: win, loss and tie add up to 1.
    This is a derivation: the paper's text was read, its equations were not readable; these are the model's standard
    forms with the paper's nu = 3. The default of beta was not found; 0.1 is DPO's.
    nu = 1 knows no ties (UserError where the data has one), and is dpo. A tie's loss is even in d, so that it does
    not matter which of its answers is called chosen; it pulls d to 0. rewards = beta * u and beta * v.
    Ties hold the policy near the reference; clear pairs see u - v only, so that both likelihoods can fall.
    """
    require_positive(beta=beta)
    require_between(1, math.inf, closed=False, nu=nu)
    tied = column(pair, "tie") != 0
    if nu == 1 and tied.any():
        raise UserError("nu is 1; where the data has ties it must be above 1.")
    chosen, rejected = logratios(pair)
    margins = beta * (chosen - rejected)
    wins = -logsigmoid(margins - math.log(nu))
    room = math.log(nu - 1) + math.log(nu + 1) if nu > 1 else 0.0
    ties = wins - logsigmoid(-margins - math.log(nu)) - room
    return rewarded(torch.where(tied, ties, wins), beta * chosen, beta * rejected)
