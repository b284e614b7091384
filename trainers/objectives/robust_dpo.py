"""DPO without bias from flipped labels. arXiv 2403.00409."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, require_between
from trainers.objectives.dpo import dpo

NEEDS = ("reference",)
PROVENANCE = "TRL"


def robust_dpo(pair: PairStats, *, beta: float = 0.1, label_smoothing: float = 0.1) -> ObjectiveOutput:
    """The loss whose mean over labels flipped at a known rate is DPO on the true labels. arXiv 2403.00409.

    losses = [(1 - e) * -log sigmoid(beta * (u - v)) - e * -log sigmoid(-beta * (u - v))] / (1 - 2 e), u and v the
    log-ratios (policy - reference, nats, summed over completion tokens) of chosen and rejected; (B,), lower is
    better. e = label_smoothing is the rate of flipped labels, 0 to below 0.5; 0 is dpo, 0.1 is typical.
    rewards = beta * u and beta * v, as in dpo.
    It can be negative, and falls without bound as the margin grows: unlike dpo, whose gradient fades, this one tends
    to -beta * e / (1 - 2 e) in the margin, so it does not stop displacement and never comes to rest.
    Equals TRL's `robust`.
    """
    require_between(0, 0.5, closed=False, label_smoothing=label_smoothing)
    exchanged = PairStats(pair.rejected, pair.chosen, pair.ref_rejected, pair.ref_chosen)
    there, back = dpo(pair, beta=beta), dpo(exchanged, beta=beta)
    losses = ((1 - label_smoothing) * there.losses - label_smoothing * back.losses) / (1 - 2 * label_smoothing)
    return there._replace(losses=losses)
