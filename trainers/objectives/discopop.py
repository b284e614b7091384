"""DiscoPOP, the log-ratio modulated loss found by a language model. arXiv 2406.08414."""

import torch
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive, rewarded

NEEDS = ("reference",)
PROVENANCE = "TRL"

LARGEST_EXPONENT = 80.0


def discopop(pair: PairStats, *, beta: float = 0.05, tau: float = 0.05) -> ObjectiveOutput:
    """The logistic loss for wrong pairs and the exponential loss for right ones. arXiv 2406.08414.

    losses = (1 - m) * -log sigmoid(x) + m * exp(-x), x = beta * (u - v), m = sigmoid(x / tau), u and v the log-ratios
    (policy - reference, nats, summed over completion tokens) of chosen and rejected; (B,), lower is better. m carries
    gradient. tau sets how sharply the two losses change places at x = 0. beta and tau are 0.05 in the paper.
    rewards = beta * u and beta * v.
    Not convex: at the defaults it has a local minimum at a margin of -2.37 nats and rises from there to 1.44 nats, so
    that pairs in between, those where policy = reference too, are first driven the wrong way. m * exp(-x) is one
    exponential, exp(log m - x); its exponent is clamped at 80, which only tau > 1 can reach: beyond it that term
    stays and its gradient is 0.
    It looks at the margin alone, so it does not stop displacement. Equals TRL's `discopop`.
    """
    require_positive(beta=beta, tau=tau)
    chosen, rejected = (beta * ratio for ratio in logratios(pair))
    x = chosen - rejected
    exponential = torch.exp((logsigmoid(x / tau) - x).clamp(max=LARGEST_EXPONENT))
    return rewarded(torch.sigmoid(-x / tau) * -logsigmoid(x) + exponential, chosen, rejected)
