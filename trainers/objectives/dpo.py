"""Direct preference optimization. arXiv 2305.18290, Eq. 7."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive

NEEDS = ("reference",)
PROVENANCE = "code"


def dpo(pair: PairStats, *, beta: float = 0.1) -> ObjectiveOutput:
    """Widen the margin of summed log-ratios between chosen and rejected. arXiv 2305.18290, Eq. 7.

    losses = -log sigmoid(beta * (u - v)), u and v the log-ratios (policy - reference, nats, summed over
    completion tokens) of chosen and rejected; (B,), lower is better, log 2 where policy = reference.
    rewards = beta * u and beta * v. The margin can grow while both likelihoods fall (likelihood displacement).
    """
    require_positive(beta=beta)
    chosen, rejected = logratios(pair)
    losses = -logsigmoid(beta * (chosen - rejected))
    return ObjectiveOutput(losses, (beta * chosen).detach(), (beta * rejected).detach())


def divergence(t: Tensor) -> Tensor:
    """f(t) = t log t, t = policy / reference: DPO is f-DPO with the reverse KL. arXiv 2309.16240."""
    return t * t.log()
