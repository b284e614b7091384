"""DPO-Shift: DPO with a smaller weight on the rejected answer. arXiv 2502.07599."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_between, require_positive, rewarded

NEEDS = ("reference",)
PROVENANCE = "code"


def dpo_shift(pair: PairStats, *, beta: float = 0.1, shift: float = 0.95) -> ObjectiveOutput:
    """DPO that pushes the rejected answer down less than it pulls the chosen one up. arXiv 2502.07599 (DPO-Shift).

    losses = -log sigmoid(beta * (u - f * v)), u and v the log-ratios (policy - reference, nats, summed over completion
    tokens) of chosen and rejected; (B,), lower is better, log 2 where policy = reference.
    f = `shift`, above 0 and at most 1; 1 is dpo. The authors fix it between 0.5 and 1 (0.95 is typical), or let it
    grow or fall on a line between 0.95 and 1 over the training. That schedule is a trainer's matter and is not done
    here: f stays. The defaults of their configuration are beta 0.1, dpo_lambda (f) 1.0 and, for the line, min 0.5 and
    max 1.0; their recipe for Llama 3 8B on UltraFeedback has beta 0.01, f 0.7 and learning rate 5e-7.
    rewards = beta * u and beta * v. It trades margin for a higher chosen likelihood: the gradient on the chosen answer
    is 1 / f times that on the rejected one. Displacement gets weaker, not impossible.
    """
    require_positive(beta=beta, shift=shift)
    require_between(0, 1, shift=shift)
    chosen, rejected = logratios(pair)
    losses = -logsigmoid(beta * (chosen - shift * rejected))
    return rewarded(losses, beta * chosen, beta * rejected)
