"""Length-desensitized DPO: tokens beyond the shorter answer count less. arXiv 2409.06411."""

from dataclasses import replace

import torch

from diagnostics.stats import PairStats, SequenceStats
from trainers.objectives import ObjectiveOutput, require_between
from trainers.objectives.dpo import dpo

NEEDS = ("reference",)
PROVENANCE = "TRL"


def ld_dpo(pair: PairStats, *, beta: float = 0.1, alpha: float = 0.5) -> ObjectiveOutput:
    """DPO in which tokens beyond the shorter answer's length count alpha times. arXiv 2409.06411.

    losses = -log sigmoid(beta * (u' - v')), u' and v' the log-ratios (policy - reference, nats) of chosen and
    rejected, summed over completion tokens, of which those after the first min(n_chosen, n_rejected) are multiplied
    by alpha, under the policy and the reference alike; (B,), lower is better, log 2 where policy = reference.
    alpha from 0 (only the length both share counts) to 1 (dpo).
    rewards = beta * u' and beta * v'.
    Equals TRL's `sigmoid` with ld_alpha = alpha, which has no default there; 0.5 is what its documentation suggests,
    and the paper's own default was not read. beta 0.1 is TRL's. Claim: shorter answers. It does not stop displacement.
    """
    require_between(0, 1, alpha=alpha)
    shared = torch.minimum(pair.chosen.lengths, pair.rejected.lengths)

    def weigh(side: SequenceStats) -> SequenceStats:
        beyond = side.completion_mask.cumsum(-1) > shared[:, None]
        logps = side.per_token_logps
        return replace(side, per_token_logps=torch.where(beyond, alpha * logps, logps), summed=None)

    sides = {name: weigh(side) for name, side in vars(pair).items() if isinstance(side, SequenceStats)}
    return dpo(replace(pair, **sides), beta=beta)
