"""Simple preference optimization with a reference-free reward. arXiv 2405.14734, Eq. 6."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, require_not_negative, require_positive

NEEDS = ()
PROVENANCE = "code"


def simpo(pair: PairStats, *, beta: float = 2.0, gamma_beta_ratio: float = 0.5) -> ObjectiveOutput:
    """Widen the margin of log-probs per token to at least gamma, without a reference. arXiv 2405.14734, Eq. 6.

    losses = -log sigmoid(beta * (p_chosen - p_rejected) - gamma), p the mean log-prob of completion tokens (nats
    per token, EOS included); (B,), lower is better. gamma = gamma_beta_ratio * beta, so gamma is 1.0 by default;
    the ratio is the authors' own parameter and is the wanted margin in nats per token (they try 0.1 to 0.8).
    rewards = beta * p_chosen and beta * p_rejected. NaN where a completion has no token.
    """
    require_positive(beta=beta)
    require_not_negative(gamma_beta_ratio=gamma_beta_ratio)
    chosen, rejected = pair.chosen.avg_logps, pair.rejected.avg_logps
    losses = -logsigmoid(beta * (chosen - rejected - gamma_beta_ratio))
    return ObjectiveOutput(losses, (beta * chosen).detach(), (beta * rejected).detach())
