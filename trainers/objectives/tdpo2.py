"""Token-level DPO with the chosen answer's KL held fixed. arXiv 2404.11999 (TDPO2)."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, part, require_not_negative, require_positive, rewarded

NEEDS = ("reference", "kl")
PROVENANCE = "code"


def tdpo2(pair: PairStats, *, beta: float = 0.1, alpha: float = 0.5) -> ObjectiveOutput:
    """Widen the margin of log-ratios less alpha times the margin of sequence KL. arXiv 2404.11999 (TDPO2).

    losses = -log sigmoid(beta * (u - v - alpha * (K_rejected - K_chosen))), u and v the log-ratios (policy -
    reference, nats, summed over completion tokens) of chosen and rejected, K the exact KL(reference || policy) over
    the vocabulary in nats, summed over the same tokens; (B,), lower is better, log 2 where policy = reference.
    Stop-gradient: K_chosen is a constant, so the KL term only pulls the KL of the rejected answer down.
    alpha weighs the KL margin inside beta; 0 is dpo, and 1 has the values of tdpo1 with another gradient.
    rewards = beta * (u + K_chosen) and beta * (v + K_rejected): as published, with the KL and without alpha.
    beta 0.1 and alpha 0.5 are the authors' defaults; they advise TDPO2 for high learning rates. Equals their code with
    if_tdpo2 true (the configuration they ship says false, which is tdpo1). Claim: slower growth of KL, the more so the
    larger alpha. It does not stop displacement: nothing holds the chosen answer's probability up.
    """
    require_positive(beta=beta)
    require_not_negative(alpha=alpha)
    chosen, rejected = logratios(pair)
    chosen_kl = pair.chosen.masked_sum(part(pair.chosen, "per_token_kl"))
    rejected_kl = pair.rejected.masked_sum(part(pair.rejected, "per_token_kl"))
    losses = -logsigmoid(beta * (chosen - rejected - alpha * (rejected_kl - chosen_kl.detach())))
    return rewarded(losses, beta * (chosen + chosen_kl), beta * (rejected + rejected_kl))
