"""Binary classifier optimization without a shift, as TRL has it for pairs. arXiv 2404.04656."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput
from trainers.objectives.bco import bco

NEEDS = ("reference",)
PROVENANCE = "TRL"


def bco_pair(pair: PairStats, *, beta: float = 0.1) -> ObjectiveOutput:
    """Classify chosen rewards as above 0 and rejected ones as below 0. arXiv 2404.04656, with delta = 0.

    losses = -log sigmoid(beta * u) - log sigmoid(-beta * v), u and v the log-ratios (policy - reference, nats,
    summed over completion tokens) of chosen and rejected; (B,), lower is better, 2 log 2 where policy = reference.
    rewards = beta * u and beta * v.
    Equals TRL's "bco_pair" (whose documentation prints another formula) and the biased NCA of the NCA authors'
    code. Not batch-coupled, other than bco with its running mean. Published default: beta 0.1.
    Each side is judged alone: a chosen likelihood below the reference's costs more than log 2, so displacement is
    opposed.
    """
    return bco(pair, beta=beta, statistics={"delta": 0.0})
