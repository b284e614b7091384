"""DPO-Positive (Smaug): DPO with a penalty on a falling chosen likelihood. arXiv 2402.13228."""

from torch.nn.functional import logsigmoid, relu

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_not_negative, require_positive, rewarded

NEEDS = ("reference",)
PROVENANCE = "recall"


def dpop(pair: PairStats, *, beta: float = 0.3, penalty: float = 50.0) -> ObjectiveOutput:
    """DPO whose margin loses what the chosen answer has lost against the reference. arXiv 2402.13228 (DPOP, Smaug).

    losses = -log sigmoid(beta * (u - v - penalty * max(0, -u))), u and v the log-ratios (policy - reference, nats,
    summed over completion tokens) of chosen and rejected; (B,), lower is better, log 2 where policy = reference.
    `penalty` is the paper's lambda; 0 is dpo. rewards = beta * u and beta * v, without the penalty.
    This is recall: the paper was not read again, the authors published no code, and beta 0.3 with lambda 50 was seen
    in others' code. Some of these put the penalty outside the sigmoid; the paper has it inside, as here.
    It acts against displacement directly: while u < 0 the chosen answer is pulled up (1 + penalty) times as hard as
    the rejected one is pushed down, and each nat that it has lost costs `penalty` nats of margin.
    """
    require_positive(beta=beta)
    require_not_negative(penalty=penalty)
    chosen, rejected = logratios(pair)
    losses = -logsigmoid(beta * (chosen - rejected - penalty * relu(-chosen)))
    return rewarded(losses, beta * chosen, beta * rejected)
