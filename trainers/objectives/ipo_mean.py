"""Identity preference optimization on log-ratios per token. arXiv 2310.12036, Eq. 17, divided by lengths."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive

NEEDS = ("reference",)
PROVENANCE = "code"


def ipo_mean(pair: PairStats, *, tau: float = 0.1) -> ObjectiveOutput:
    """Pull the margin of log-ratios per token to 1 / (2 tau). arXiv 2310.12036, Eq. 17, divided by lengths.

    losses = (u / n_chosen - v / n_rejected - 1 / (2 tau))^2, u and v the summed log-ratios (policy - reference,
    nats), n the number of completion tokens, EOS included; (B,), in squared nats per token, lower is better,
    0 at the target. NaN where a completion has no token.
    rewards = tau * u and tau * v, with sums as in every other objective, so that rewards can be compared.
    This is the `ipo` of TRL's DPO trainer and of HALOs (with beta for tau). The paper's loss, on sums, is ipo_sum.
    """
    require_positive(tau=tau)
    chosen, rejected = logratios(pair)
    margins = chosen / pair.chosen.lengths - rejected / pair.rejected.lengths
    losses = (margins - 1 / (2 * tau)) ** 2
    return ObjectiveOutput(losses, (tau * chosen).detach(), (tau * rejected).detach())
