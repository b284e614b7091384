"""Adaptive rejection preference optimization: CPO that spares near-equal rejected answers. arXiv 2410.03115."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import (
    Mean,
    ObjectiveOutput,
    nll,
    require_mean,
    require_not_negative,
    require_positive,
    rewarded,
)

NEEDS = ()
PROVENANCE = "code"

LARGEST_EXPONENT = 80.0


def arpo(
    pair: PairStats,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    relax_coefficient_1: float = 0.9,
    relax_coefficient_2: float = 0.4,
    normalization: Mean = "sequence_mean",
) -> ObjectiveOutput:
    """CPO whose push on the rejected answer shrinks where the two answers are about as likely. arXiv 2410.03115.

    losses = -log sigmoid(beta * (P_chosen - z * P_rejected)) + alpha * nll, with
    z = min(1, c1 * exp(c2 * |p_chosen - p_rejected|) - 1), P the log-prob (nats) summed over completion tokens and p
    its mean per token, EOS included; (B,), lower is better. NaN where a completion has no token. c1 and c2 are
    relax_coefficient_1 and relax_coefficient_2, 0.9 and 0.4 as in the authors' code (X-ALMA); z is -0.1 at equal
    means and 1, which is cpo, from log(2 / 0.9) / 0.4 = 2.0 nats per token on. z carries gradient, as in that code.
    rewards = beta * P_chosen and beta * P_rejected, without z. No reference.
    beta, alpha and nll (normalization: sequence_mean or batch_token_mean) are those of cpo; values of their own for
    the first two were not found. The authors' code has batch_token_mean, one mean over all chosen tokens of the batch.
    It spares the rejected answers that resemble the chosen ones, whose fall drags the chosen likelihood along, and the
    likelihood term works against that fall too. The exponent is clamped at 80, where z is 1 anyway.
    """
    require_positive(beta=beta)
    require_mean(normalization)
    require_not_negative(alpha=alpha, relax_coefficient_1=relax_coefficient_1, relax_coefficient_2=relax_coefficient_2)
    chosen, rejected = pair.chosen.logps, pair.rejected.logps
    z = _strength(pair, relax_coefficient_1, relax_coefficient_2)
    losses = -logsigmoid(beta * (chosen - z * rejected)) + alpha * nll(pair.chosen, normalization)
    return rewarded(losses, beta * chosen, beta * rejected)


def _strength(pair: PairStats, first: float, second: float) -> Tensor:
    """(B,) how much of the rejected log-prob counts, at most 1."""
    distance = (pair.chosen.avg_logps - pair.rejected.avg_logps).abs()
    return (first * torch.exp((second * distance).clamp(max=LARGEST_EXPONENT)) - 1).clamp(max=1.0)
