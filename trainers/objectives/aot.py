"""Alignment via optimal transport, paired: quantiles of the margins. arXiv 2406.05882."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_between, require_positive, rewarded

NEEDS = ("reference", "whole batch")
PROVENANCE = "TRL"


def aot(pair: PairStats, *, beta: float = 0.01, label_smoothing: float = 0.0) -> ObjectiveOutput:
    """Lift the policy's whole distribution of margins above the reference's. arXiv 2406.05882.

    losses = -(1 - label_smoothing) * log sigmoid(beta * m) - label_smoothing * log sigmoid(-beta * m)
    m_i = (i-th smallest P_chosen - P_rejected of the batch) - (i-th smallest R_chosen - R_rejected of the batch),
    P and R the summed log-probs of policy and reference (nats); (B,), lower is better, log 2 where policy =
    reference. The i-th loss belongs to the i-th quantile of the batch, not to the i-th row; their mean is the
    update's loss. Rewards are per row: beta * u and beta * v, u and v the log-ratios of chosen and rejected.
    Published default: beta 0.01, no smoothing; label_smoothing is the assumed share of flipped labels.
    Equals TRL's "aot". Batch-coupled: the sort runs over the batch, so gradient accumulation and processes change
    it (TRL sorts each device's part alone). Only margins count, so both likelihoods of a pair may fall.
    """
    require_positive(beta=beta)
    require_between(0, 0.5, closed=False, label_smoothing=label_smoothing)
    chosen, rejected = logratios(pair)
    policy = pair.chosen.logps - pair.rejected.logps
    reference = (policy - (chosen - rejected)).detach()
    gaps = beta * (policy.sort().values - reference.sort().values)
    losses = -(1 - label_smoothing) * logsigmoid(gaps) - label_smoothing * logsigmoid(-gaps)
    return rewarded(losses, beta * chosen, beta * rejected)
