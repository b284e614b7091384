"""Noise contrastive alignment for pairs. arXiv 2402.05369."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive, rewarded

NEEDS = ("reference",)
PROVENANCE = "code"


def nca_pair(pair: PairStats, *, beta: float = 0.01) -> ObjectiveOutput:
    """Raise the chosen log-ratio to a target of its own and lower both against it. arXiv 2402.05369.

    losses = -log sigmoid(beta * u) - 0.5 * log sigmoid(-beta * u) - 0.5 * log sigmoid(-beta * v), u and v the
    log-ratios (policy - reference, nats, summed over completion tokens) of chosen and rejected; (B,), lower is
    better, 2 log 2 where policy = reference. rewards = beta * u and beta * v. beta 0.01 is the authors'.
    Each side has a loss of its own: that of u is least at u = log(2) / beta, so the chosen likelihood is pulled above
    the reference's and not beyond that point, which is what works against displacement; v is pushed down.
    Equals the authors' code for pairs and TRL's `nca_pair`. The same paper's InfoNCA for pairs is dpo.
    """
    require_positive(beta=beta)
    chosen, rejected = (beta * ratio for ratio in logratios(pair))
    losses = -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
    return rewarded(losses, chosen, rejected)
