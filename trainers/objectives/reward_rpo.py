"""Reward-aware preference optimization: match a reward model's margin. arXiv 2502.00203."""

from typing import Literal, get_args

from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, logratios, require_choice, require_positive, rewarded

NEEDS = ("reference",)
COLUMNS = ("chosen_score", "rejected_score")
PROVENANCE = "code"

Distance = Literal["bwd_kl", "fwd_kl", "sq"]


def reward_rpo(
    pair: PairStats, *, beta: float = 0.1, eta: float = 1.0, distance: Distance = "bwd_kl"
) -> ObjectiveOutput:
    """Bring the implicit reward margin to eta times a reward model's margin. arXiv 2502.00203 (reward-aware RPO).

    losses = distance(x, a) in nats (sq: squared nats), (B,), lower is better, 0 where x = a, with x = beta * (u - v)
    and a = eta * (chosen_score - rejected_score); u and v are the log-ratios (policy - reference, nats, summed over
    completion tokens) of chosen and rejected, the scores two columns. As Bernoulli distributions by their log-odds:
    - bwd_kl: KL(Bern(sigmoid(a)) || Bern(sigmoid(x))). It is adpo with preference sigmoid(a), less that preference's
      entropy; towards a = infinity it is dpo.
    - fwd_kl: KL(Bern(sigmoid(x)) || Bern(sigmoid(a))).
    - sq: (x - a)^2.
    Names and formulas are those of NeMo-Aligner (rpo_bwd_kl, rpo_fwd_kl, rpo_sq). eta = 1 is its gt_reward_scale; its
    ref_policy_kl_penalty, here beta, is 0.2 in its configuration, and 0.1 here is DPO's.
    rewards = beta * u and beta * v. The target is finite, which ends the pull apart, but the loss sees u - v only, so
    that both likelihoods can fall. A pair whose scores disagree with its order is trained the other way round.
    """
    require_positive(beta=beta, eta=eta)
    require_choice(get_args(Distance), distance=distance)
    chosen, rejected = logratios(pair)
    margins = beta * (chosen - rejected)
    targets = eta * (column(pair, "chosen_score") - column(pair, "rejected_score"))
    return rewarded(_distances(margins, targets, distance), beta * chosen, beta * rejected)


def _distances(margins: Tensor, targets: Tensor, distance: str) -> Tensor:
    """(B,) distance between implicit and wanted margins."""
    if distance == "sq":
        return (margins - targets) ** 2
    return _kl(targets, margins) if distance == "bwd_kl" else _kl(margins, targets)


def _kl(x: Tensor, y: Tensor) -> Tensor:
    """(B,) KL(Bern(sigmoid(x)) || Bern(sigmoid(y)))."""
    high = x.sigmoid() * (logsigmoid(x) - logsigmoid(y))
    low = (-x).sigmoid() * (logsigmoid(-x) - logsigmoid(-y))
    return high + low
