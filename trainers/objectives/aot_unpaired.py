"""Alignment via optimal transport, unpaired: quantiles of both sides. arXiv 2406.05882."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_between, require_positive, rewarded

NEEDS = ("reference", "whole batch")
PROVENANCE = "TRL"


def aot_unpaired(pair: PairStats, *, beta: float = 0.01, label_smoothing: float = 0.0) -> ObjectiveOutput:
    """Lift the distribution of the chosen answers' log-ratios above that of the rejected. arXiv 2406.05882.

    losses = -(1 - label_smoothing) * log sigmoid(beta * m) - label_smoothing * log sigmoid(-beta * m)
    m_i = (i-th smallest u of the batch) - (i-th smallest v of the batch), u and v the log-ratios (policy -
    reference, nats, summed over completion tokens) of chosen and rejected; (B,), lower is better, log 2 where
    policy = reference. The i-th loss belongs to the i-th quantile of the batch, not to the i-th row; their mean is
    the update's loss. Rewards are per row: beta * u and beta * v. Which chosen answer belongs to which rejected one
    does not matter.
    Published default: beta 0.01, no smoothing; label_smoothing is the assumed share of flipped labels.
    Equals TRL's "aot_unpaired". Batch-coupled: the sort runs over the batch, so gradient accumulation and processes
    change it (TRL sorts each device's part alone). Only differences count, so both likelihoods may fall.
    """
    require_positive(beta=beta)
    require_between(0, 0.5, closed=False, label_smoothing=label_smoothing)
    chosen, rejected = logratios(pair)
    gaps = beta * (chosen.sort().values - rejected.sort().values)
    losses = -(1 - label_smoothing) * logsigmoid(gaps) - label_smoothing * logsigmoid(-gaps)
    return rewarded(losses, beta * chosen, beta * rejected)
