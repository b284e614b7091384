"""Dense DPO: tokens of corrected segments count gamma times. arXiv 2312.00849 (RLHF-V)."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats, SequenceStats
from trainers.objectives import ObjectiveOutput, logratios, part, require_positive, rewarded

NEEDS = ("reference", "phrases")
PROVENANCE = "code"


def ddpo_dense(pair: PairStats, *, beta: float = 0.1, gamma: float = 5.0, average: bool = True) -> ObjectiveOutput:
    """DPO in which tokens of marked phrases count gamma times. arXiv 2312.00849 (RLHF-V, dense DPO).

    losses = -log sigmoid(beta * (f - g)), f and g the log-ratios (policy - reference, nats) of chosen and rejected,
    summed over completion tokens with weight gamma inside marked phrases and 1 outside; (B,), lower is better, log 2
    where policy = reference.
    average: divide each of the two sums by the sum of its weights, n_outside + gamma * n_inside, which makes it nats
    per token (the paper); NaN where a completion has no token. False: no division, as in the released training
    script. gamma 1 without average is dpo.
    rewards = beta * f and beta * g.
    Checked against the authors' code, whose default for gamma is 3 and whose script has gamma 1.1, beta 0.1 and no
    average. gamma 5 with average is the paper's by recall, it was not read again; the paper's beta was not found. Their
    segments are replaced spans of a token diff with at least 3 tokens in each match; here they are whatever the marked
    phrases are. It does not stop displacement.
    """
    require_positive(beta=beta, gamma=gamma)
    inside = {name: part(getattr(pair, name), "phrase_mask") > 0 for name in ("chosen", "rejected")}

    def weigh(side: SequenceStats, marked: Tensor) -> SequenceStats:
        logps = side.per_token_logps
        return replace(side, per_token_logps=torch.where(marked, gamma * logps, logps), summed=None)

    sides = {
        name: weigh(side, inside[name.removeprefix("ref_")])
        for name, side in vars(pair).items()
        if isinstance(side, SequenceStats)
    }
    chosen, rejected = logratios(replace(pair, **sides))
    if average:
        chosen = chosen / _total(pair.chosen, inside["chosen"], gamma)
        rejected = rejected / _total(pair.rejected, inside["rejected"], gamma)
    return rewarded(-logsigmoid(beta * (chosen - rejected)), beta * chosen, beta * rejected)


def _total(side: SequenceStats, marked: Tensor, gamma: float) -> Tensor:
    """(B,) sum of the weights of completion tokens."""
    return side.lengths + (gamma - 1) * side.masked_sum(marked)
