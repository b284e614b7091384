"""Odds ratio preference optimization. arXiv 2403.07691."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import Mean, ObjectiveOutput, nll, require_mean, require_not_negative, rewarded

NEEDS = ()
PROVENANCE = "code"

ALMOST_CERTAIN = -1e-12  # nats per token; an answer of probability 1 has infinite odds


def orpo(pair: PairStats, *, beta: float = 0.1, normalization: Mean = "sequence_mean") -> ObjectiveOutput:
    """Likelihood of the chosen answer, and a log odds ratio against the rejected one. arXiv 2403.07691.

    losses = nll + beta * -log sigmoid(o(p_chosen) - o(p_rejected)), o(p) = p - log(1 - exp(p)) the log odds, p
    the mean log-prob of completion tokens (nats per token, EOS included); (B,), lower is better. NaN where a
    completion has no token. beta (TRL's name) is the paper's lambda, the weight of the odds ratio: 0.1.
    rewards = beta * p_chosen and beta * p_rejected, as TRL logs them. No reference.
    nll of the chosen answer, P its summed log-prob and n its number of tokens, without the prompt's loss:
    - sequence_mean: -p_chosen, the mean over the pair's own chosen tokens.
    - batch_token_mean: -P_chosen * B / (sum of n over the batch), one mean over all chosen tokens of the batch: the
      authors' code without its prompt loss; TRL, where the mean runs over prompt tokens too. Long answers weigh more,
      and gradient accumulation changes it.
    p above -1e-12 counts as -1e-12, so that an answer of probability 1 keeps a finite loss (no gradient there).
    The odds ratio alone can be met while both likelihoods fall; the likelihood term works against that at every step.
    """
    require_not_negative(beta=beta)
    require_mean(normalization)
    chosen, rejected = pair.chosen.avg_logps, pair.rejected.avg_logps
    losses = nll(pair.chosen, normalization) - beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))
    return rewarded(losses, beta * chosen, beta * rejected)


def _log_odds(means: Tensor) -> Tensor:
    """p - log(1 - exp(p)); expm1 keeps the digits near p = 0, and far below the second term is lost in p rightly."""
    means = means.clamp(max=ALMOST_CERTAIN)
    return means - torch.log(-torch.expm1(means))
