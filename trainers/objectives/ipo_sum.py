"""Identity preference optimization on summed log-ratios. arXiv 2310.12036, Eq. 17."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive

NEEDS = ("reference",)
PROVENANCE = "code"


def ipo_sum(pair: PairStats, *, tau: float = 0.1) -> ObjectiveOutput:
    """Pull the margin of summed log-ratios to 1 / (2 tau), and no further. arXiv 2310.12036, Eq. 17.

    losses = (u - v - 1 / (2 tau))^2, u and v the log-ratios (policy - reference, nats, summed over completion
    tokens) of chosen and rejected; (B,), in squared nats, lower is better, 0 at the target.
    rewards = tau * u and tau * v.
    This is the paper's loss, and that of eric-mitchell/direct-preference-optimization (there with beta for tau)
    and of TRL's online DPO. TRL's DPO trainer divides by lengths first: that is ipo_mean.
    """
    require_positive(tau=tau)
    chosen, rejected = logratios(pair)
    losses = (chosen - rejected - 1 / (2 * tau)) ** 2
    return ObjectiveOutput(losses, (tau * chosen).detach(), (tau * rejected).detach())
