"""Contrastive preference optimization. arXiv 2401.08417."""

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


def cpo(
    pair: PairStats, *, beta: float = 0.1, alpha: float = 1.0, normalization: Mean = "sequence_mean"
) -> ObjectiveOutput:
    """DPO with a uniform reference, plus the chosen answer's negative log-likelihood. arXiv 2401.08417.

    losses = -log sigmoid(beta * (P_chosen - P_rejected)) + alpha * nll, P the log-prob (nats) summed over completion
    tokens, EOS included; (B,), lower is better. beta 0.1 and alpha 1 (TRL's cpo_alpha) are the published values.
    nll of the chosen answer, n its number of tokens:
    - sequence_mean: -P_chosen / n, the mean over the pair's own chosen tokens. NaN where n = 0.
    - batch_token_mean: -P_chosen * B / (sum of n over the batch), one mean over all chosen tokens of the batch: the
      authors' code (ALMA) and TRL. Long answers weigh more, and gradient accumulation changes it.
    rewards = beta * P_chosen and beta * P_rejected. No reference.
    Sums favour short answers. The preference term alone can be met while both likelihoods fall; the likelihood term
    works against that at every step.
    """
    require_positive(beta=beta)
    require_not_negative(alpha=alpha)
    require_mean(normalization)
    chosen, rejected = beta * pair.chosen.logps, beta * pair.rejected.logps
    losses = -logsigmoid(chosen - rejected) + alpha * nll(pair.chosen, normalization)
    return rewarded(losses, chosen, rejected)
