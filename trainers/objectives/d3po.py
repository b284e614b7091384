"""D3PO: preferences between two sampling chains, step by step. arXiv 2311.13231."""

from math import log1p

from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, references, require_between, require_positive, rewarded, widened

NEEDS = ("reference",)
LIKELIHOOD = "steps"
PROVENANCE = "code"


def d3po(pair: PairStats, *, beta: float = 0.1, clip: float = 0.1) -> ObjectiveOutput:
    """DPO at every step of two sampling chains, with clipped ratios. arXiv 2311.13231 (D3PO).

    losses = the mean over steps of -log sigmoid(beta * log r_w - beta * log r_l), r = clamp(exp(l_policy - l_ref),
    1 - clip, 1 + clip), l the Gaussian log-prob of a step: the mean over the sample's numbers of -(x_next - mu)^2 /
    (2 s^2) - log s - log sqrt(2 pi), s that of DDIM with eta 1; (B,), lower is better, log 2 where policy = reference.
    Chosen and rejected are two independent chains, all steps, the k-th beside the k-th.
    rewards = beta * the mean over steps of log r. Beyond the clamp (|l_policy - l_ref| of about clip) a side has no
    gradient: how many steps stand there should be looked at. beta 0.1, clip 0.1, a learning rate of 3e-5, 20 steps and
    guidance 5 are the authors'.
    """
    require_positive(beta=beta)
    sides = zip((pair.chosen, pair.rejected), references(pair), strict=True)
    moved = (own.per_token_logps - ref.per_token_logps for own, ref in sides)
    return stepwise(pair, *moved, beta=beta, clip=clip)


def stepwise(pair: PairStats, chosen: Tensor, rejected: Tensor, *, beta: float, clip: float) -> ObjectiveOutput:
    """The loss of clipped log-ratios (B, S) of every step of both sides, over the steps that both have."""
    require_between(0, 1, closed=False, clip=clip)
    both = pair.chosen.completion_mask.bool() & pair.rejected.completion_mask.bool()
    moved = (widened(values).masked_fill(~both, 0.0) for values in (chosen, rejected))
    chosen, rejected = (beta * values.clamp(log1p(-clip), log1p(clip)) for values in moved)
    losses = -logsigmoid(chosen - rejected).masked_fill(~both, 0.0)
    return rewarded(*(values.sum(-1) / both.sum(-1) for values in (losses, chosen, rejected)))
