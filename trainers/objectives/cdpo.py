"""DPO with label smoothing (conservative DPO). E. Mitchell, A note on DPO with noisy preferences."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, require_between
from trainers.objectives.dpo import dpo

NEEDS = ("reference",)
PROVENANCE = "code"


def cdpo(pair: PairStats, *, beta: float = 0.1, label_smoothing: float = 0.2) -> ObjectiveOutput:
    """DPO for labels of which a part may be wrong. E. Mitchell's note on cDPO. Source: own reading of its code.

    losses = (1 - e) * -log sigmoid(beta * (u - v)) + e * -log sigmoid(-beta * (u - v)), u and v the log-ratios
    (policy - reference, nats, summed over completion tokens) of chosen and rejected; (B,), lower is better.
    e = label_smoothing is the probability that the two answers stand the wrong way round, 0 to below 0.5; 0 is dpo,
    0.2 is the default of HALOs.
    rewards = beta * u and beta * v, as in dpo.
    The loss is least at the margin u - v = log((1 - e) / e) / beta and grows beyond it, so drift is bounded; but it
    looks at the margin alone, so it does not stop both likelihoods from falling on the way there.
    Equals eric-mitchell/direct-preference-optimization and HALOs. TRL 1.16's `sigmoid` ignores label_smoothing;
    older versions of TRL did this.
    """
    require_between(0, 0.5, closed=False, label_smoothing=label_smoothing)
    exchanged = PairStats(pair.rejected, pair.chosen, pair.ref_rejected, pair.ref_chosen)
    there, back = dpo(pair, beta=beta), dpo(exchanged, beta=beta)
    return there._replace(losses=(1 - label_smoothing) * there.losses + label_smoothing * back.losses)
