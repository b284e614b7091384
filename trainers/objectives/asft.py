"""Aligned supervised fine-tuning: absolute odds of each answer. arXiv 2409.10571, read through arXiv 2502.01237."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, require_not_negative, rewarded
from trainers.objectives.orpo import _log_odds

NEEDS = ()
PROVENANCE = "secondary"


def asft(pair: PairStats, *, beta: float = 0.1) -> ObjectiveOutput:
    """Likelihood of the chosen answer, and the odds of each answer by itself. arXiv 2409.10571.

    losses = -p_chosen + beta * [-log sigmoid(o(p_chosen)) - log sigmoid(-o(p_rejected))], o(p) = p - log(1 - exp(p)),
    which is -(1 + beta) * p_chosen - beta * log(1 - exp(p_rejected)), p the mean log-prob of completion tokens (nats
    per token, EOS included); (B,), lower is better. NaN where a completion has no token. beta, named as in orpo, is
    the paper's lambda. rewards = beta * p_chosen and beta * p_rejected, as in orpo. No reference.
    Secondary: the formula is that of arXiv 2502.01237. The paper's own lambda was not found (a grid of 0.1 to 1 was
    seen; 0.1 is orpo's), and whether its p is a mean or a sum was not verified: the mean, as in orpo, is our choice.
    p_rejected above -1e-12 counts as -1e-12, as in orpo.
    The two answers are apart: the chosen likelihood can only gain by its own term, so what displacement remains comes
    from weights that both answers share. The aligning part is never less than that of orpo.
    """
    require_not_negative(beta=beta)
    chosen, rejected = pair.chosen.avg_logps, pair.rejected.avg_logps
    # not softplus, which torch cuts to a straight line from 20 on
    losses = -(1 + beta) * chosen - beta * logsigmoid(-_log_odds(rejected))
    return rewarded(losses, beta * chosen, beta * rejected)
