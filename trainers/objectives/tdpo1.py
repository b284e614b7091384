"""Token-level DPO with the sequence KL of both answers in the margin. arXiv 2404.11999 (TDPO1)."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, part, require_positive, rewarded

NEEDS = ("reference", "kl")
PROVENANCE = "code"


def tdpo1(pair: PairStats, *, beta: float = 0.1) -> ObjectiveOutput:
    """Widen the margin of log-ratios less the margin of sequence KL. arXiv 2404.11999 (TDPO1).

    losses = -log sigmoid(beta * (u - v - (K_rejected - K_chosen))), u and v the log-ratios (policy - reference, nats,
    summed over completion tokens) of chosen and rejected, K the exact KL(reference || policy) over the vocabulary in
    nats, summed over the same tokens; (B,), lower is better, log 2 where policy = reference.
    The gradient flows through both K: it pulls the KL of the rejected answer down and pushes that of the chosen
    answer up. tdpo2 has equal values at alpha 1 and another gradient.
    rewards = beta * (u + K_chosen) and beta * (v + K_rejected): as published, they hold the KL too.
    beta 0.1 is the authors' default. Equals their code with if_tdpo2 false, which their configuration ships with,
    although function default and readme say TDPO2. Claim: slower growth of KL. It does not stop displacement: nothing
    holds the chosen answer's probability up, and its KL is rewarded.
    """
    require_positive(beta=beta)
    chosen, rejected = logratios(pair)
    chosen = chosen + pair.chosen.masked_sum(part(pair.chosen, "per_token_kl"))
    rejected = rejected + pair.rejected.masked_sum(part(pair.rejected, "per_token_kl"))
    return rewarded(-logsigmoid(beta * (chosen - rejected)), beta * chosen, beta * rejected)
