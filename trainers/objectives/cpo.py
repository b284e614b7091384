"""Contrastive preference optimization. arXiv 2401.08417."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, require_not_negative, require_positive, rewarded

NEEDS = ()
PROVENANCE = "code"


def cpo(pair: PairStats, *, beta: float = 0.1, alpha: float = 1.0) -> ObjectiveOutput:
    """DPO with a uniform reference, plus the chosen answer's negative log-likelihood. arXiv 2401.08417.

    losses = -log sigmoid(beta * (P_chosen - P_rejected)) + alpha * -P_chosen / n_chosen, P the log-prob (nats) summed
    over completion tokens and n their number, EOS included; (B,), lower is better. NaN where the chosen completion
    has no token. beta 0.1 and alpha 1 (TRL's cpo_alpha) are the published values.
    rewards = beta * P_chosen and beta * P_rejected. No reference.
    The likelihood term is the mean over the pair's own chosen tokens. TRL and ALMA take one mean over all chosen
    tokens of the batch, which is the same for one pair and weighs long answers more otherwise.
    Sums favour short answers. The preference term alone can be met while both likelihoods fall; the likelihood term
    works against that at every step.
    """
    require_positive(beta=beta)
    require_not_negative(alpha=alpha)
    chosen, rejected = beta * pair.chosen.logps, beta * pair.rejected.logps
    losses = -logsigmoid(chosen - rejected) - alpha * pair.chosen.avg_logps
    return rewarded(losses, chosen, rejected)
