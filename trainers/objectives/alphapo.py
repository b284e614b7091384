"""SimPO with a reward whose shape can be set. arXiv 2501.03884 (AlphaPO)."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, require_between, require_not_negative, require_positive, rewarded

NEEDS = ()
PROVENANCE = "TRL"

LARGEST_EXPONENT = 80.0


def alphapo(pair: PairStats, *, beta: float = 2.5, gamma: float = 0.1, alpha: float = 0.25) -> ObjectiveOutput:
    """SimPO with the log-prob per token bent by alpha, without a reference. arXiv 2501.03884.

    losses = -log sigmoid(beta * (r(p_chosen) - r(p_rejected)) - gamma), r(p) = (1 - exp(-alpha * p)) / alpha, p the
    mean log-prob of completion tokens (nats per token, EOS included); (B,), lower is better. NaN where a completion
    has no token. alpha 0 is r(p) = p, which is simpo with gamma_beta_ratio = gamma / beta. alpha > 0 makes r steep
    where the answer is improbable, alpha < 0 flat. gamma is the margin itself, in units of the reward.
    rewards = beta * r(p). The exponent -alpha * p is clamped at 80: beyond it (at alpha 0.25: under -320 nats per
    token) the reward stays and its gradient is 0.
    Defaults: Mistral-7B-Instruct, as TRL's paper index gives them, with gamma 0.1; a secondary source reads the
    paper's 0.1 as gamma / beta, which would be gamma 0.25. Equals TRL's CPO trainer with `alphapo`.
    The paper says that alpha trades displacement against over-optimization; nothing in the loss stops displacement.
    """
    require_positive(beta=beta)
    require_not_negative(gamma=gamma)
    require_between(-10, 10, alpha=alpha)
    chosen, rejected = (beta * _reward(side.avg_logps, alpha) for side in (pair.chosen, pair.rejected))
    return rewarded(-logsigmoid(chosen - rejected - gamma), chosen, rejected)


def _reward(means: Tensor, alpha: float) -> Tensor:
    """(1 - exp(-alpha * p)) / alpha, exact for small alpha too."""
    if alpha == 0:
        return means
    return -torch.expm1((-alpha * means).clamp(max=LARGEST_EXPONENT)) / alpha
