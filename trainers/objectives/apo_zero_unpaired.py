"""Anchored preference optimization, zero, on single answers. arXiv 2408.06266."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput
from trainers.objectives.kto import kto

NEEDS = ("reference",)
PROVENANCE = "TRL"


def apo_zero_unpaired(
    pair: PairStats, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> ObjectiveOutput:
    """KTO with z = 0: chosen answers up and rejected ones down from the reference. arXiv 2408.06266.

    losses = (desirable_weight * (1 - sigmoid(beta * u)) + undesirable_weight * sigmoid(beta * v)) / 2, u and v the
    log-ratios (policy - reference, nats, summed over completion tokens) of chosen and rejected; (B,), lower is
    better, 1/2 where policy = reference (weights 1). rewards = beta * u and beta * v.
    Equals the "apo_zero_unpaired" of TRL's KTOTrainer. A pair's loss is the mean of its two sides' terms (see kto),
    so with weights 1 it is half of the paired APO-zero. Not batch-coupled. Published default: beta 0.1.
    Anchored at the reference: it raises the chosen likelihood itself, which opposes displacement.
    """
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    return kto(pair, beta=beta, **weights, statistics={"kl": 0.0})
