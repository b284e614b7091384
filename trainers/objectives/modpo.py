"""Multi-objective DPO: a margin made of the other objectives' rewards. arXiv 2310.03708."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, logratios, require_between, require_positive, rewarded

NEEDS = ("reference",)
COLUMNS = ("chosen_other", "rejected_other")
PROVENANCE = "code"


def modpo(pair: PairStats, *, beta: float = 0.1, weight: float = 0.5) -> ObjectiveOutput:
    """DPO on one objective's preferences, given what other objectives' rewards say. arXiv 2310.03708 (MODPO).

    losses = -log sigmoid((beta * (u - v) - w . (m_w - m_l)) / w_0), u and v the log-ratios (policy - reference, nats,
    summed over completion tokens) of chosen and rejected, m_w and m_l their rewards by the other objectives, the
    columns `chosen_other` and `rejected_other`: (B,), or (B, R) for R of them. (B,), lower is better.
    w_0 = `weight` is the weight of the objective whose preferences these are; the rest, 1 - w_0, is shared equally
    among the R others (scale the columns for other shares). w_0 = 1 is dpo; one run a weight gives the front.
    rewards = (beta * u - w . m_w) / w_0 and (beta * v - w . m_l) / w_0, as in the authors' code: the reward learnt for
    this objective alone. Defaults are theirs; their other rewards are 0.1 times a DPO model's log-ratios, or any
    reward model's. The loss sees u - v only, so that both likelihoods can fall.
    """
    require_positive(beta=beta, weight=weight)
    require_between(0, 1, weight=weight)
    rest = 1 - weight
    chosen, rejected = logratios(pair)
    chosen = (beta * chosen - rest * _mean(column(pair, "chosen_other"))) / weight
    rejected = (beta * rejected - rest * _mean(column(pair, "rejected_other"))) / weight
    return rewarded(-logsigmoid(chosen - rejected), chosen, rejected)


def _mean(rewards: Tensor) -> Tensor:
    """(B,) mean over the other objectives of (B,) or (B, R) rewards."""
    return rewards if rewards.ndim == 1 else rewards.mean(-1)
