"""DPO with ties, Davidson model. arXiv 2409.17431."""

import math

import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, logratios, require_not_negative, require_positive, rewarded

NEEDS = ("reference",)
COLUMNS = ("tie",)
PROVENANCE = "derivation"


def dpo_d(pair: PairStats, *, beta: float = 0.1, nu: float = 1.0) -> ObjectiveOutput:
    """DPO that also learns from tied pairs, by the Davidson model of ties. arXiv 2409.17431 (DPO-D).

    losses = log(1 + exp(-d) + 2 nu exp(-d / 2)) for a clear preference, and that + d / 2 - log(2 nu) where the column
    `tie` is not 0; d = beta * (u - v), u and v the log-ratios (policy - reference, nats, summed over completion
    tokens) of chosen and rejected; (B,), lower is better. They are the negative logs of the model's probabilities:
    win, loss and tie add up to 1.
    This is a derivation: the paper's text was read, its equations were not readable; these are the model's standard
    forms with the paper's nu = 1. The default of beta was not found; 0.1 is DPO's.
    nu = 0 knows no ties (UserError where the data has one), and is dpo. A tie's loss is even in d, so that it does
    not matter which of its answers is called chosen; it pulls d to 0. rewards = beta * u and beta * v.
    Ties hold the policy near the reference; clear pairs see u - v only, so that both likelihoods can fall.
    """
    require_positive(beta=beta)
    require_not_negative(nu=nu)
    tied = column(pair, "tie") != 0
    if nu == 0 and tied.any():
        raise UserError("nu is 0; where the data has ties it must be above 0.")
    chosen, rejected = logratios(pair)
    margins = beta * (chosen - rejected)
    terms = [torch.zeros_like(margins), -margins]
    if nu == 0:
        return rewarded(torch.stack(terms).logsumexp(0), beta * chosen, beta * rejected)
    room = math.log(2) + math.log(nu)
    wins = torch.stack([*terms, room - margins / 2]).logsumexp(0)
    return rewarded(torch.where(tied, wins + margins / 2 - room, wins), beta * chosen, beta * rejected)
