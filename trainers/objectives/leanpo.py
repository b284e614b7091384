"""LeanPO: SimPO with label smoothing for wrongly ranked pairs and an SFT term. arXiv 2506.05260."""

from dataclasses import replace

import torch

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, require_between, require_not_negative, require_positive
from trainers.objectives.simpo import simpo

NEEDS = ("whole batch",)
PROVENANCE = "code"


def leanpo(
    pair: PairStats,
    *,
    beta: float = 2.0,
    label_smoothing: float = 0.1,
    margin: float = 0.0,
    alpha: float = 0.5,
    dynamic: bool = True,
    statistics: dict[str, float] | None = None,
) -> ObjectiveOutput:
    """SimPO that lets go of pairs the policy ranks the wrong way, plus SFT on the chosen answers. arXiv 2506.05260.

    losses = -(1 - w) * log sigmoid(z - margin) - w * log sigmoid(-z - margin) + alpha * nll, with
    z = beta * (p_chosen - p_rejected), p the mean log-prob of completion tokens (nats per token, EOS included), and
    nll = -P_chosen / (mean number of chosen tokens a pair), P the summed log-prob; (B,), lower is better, no
    reference. NaN where a completion has no token.
    w = label_smoothing where z < 0 and 0 elsewhere; with dynamic False label_smoothing everywhere. It is a step, so
    it has no gradient. The turned term keeps -margin, as in the code. With label_smoothing 0 and alpha 0 this is simpo
    with gamma_beta_ratio = margin / beta.
    The mean over pairs of nll is the mean over all chosen tokens of the batch: this couples the batch, long answers
    weigh more, and gradient accumulation changes it. statistics: {"chosen_length": tokens a chosen answer} of the
    whole batch, where a caller has it; None: of these pairs.
    rewards = beta * p_chosen and beta * p_rejected.
    Read in the first author's code; the paper's own equations were not readable, so that they are the same is not
    verified. Defaults are those of its last video run (label_smoothing 0.1, margin 0, alpha 0.5, there named gamma;
    its preference weight dpo_alpha is 1 here); other runs have margin 0.5 or label_smoothing 0.2, and which pair the
    paper's results use is not known. Aimed at displacement: the SFT term holds the chosen answer's probability up.
    """
    require_positive(beta=beta)
    require_between(0, 0.5, closed=False, label_smoothing=label_smoothing)
    require_not_negative(margin=margin, alpha=alpha)
    right = simpo(pair, beta=beta, gamma_beta_ratio=margin / beta)
    turned = simpo(replace(pair, chosen=pair.rejected, rejected=pair.chosen), beta=beta, gamma_beta_ratio=margin / beta)
    smoothed = right.chosen_rewards < right.rejected_rewards if dynamic else torch.ones_like(right.losses).bool()
    weights = label_smoothing * smoothed.to(right.losses.dtype)
    nll = -pair.chosen.logps / (statistics["chosen_length"] if statistics else _chosen_length(pair))
    return right._replace(losses=(1 - weights) * right.losses + weights * turned.losses + alpha * nll)


def statistics(pair: PairStats, previous: dict[str, float] | None) -> dict[str, float]:
    """Mean number of chosen tokens a pair; of this batch alone, whatever the ones before it."""
    return {"chosen_length": _chosen_length(pair)}


def _chosen_length(pair: PairStats) -> float:
    return int(pair.chosen.lengths.sum()) / len(pair.chosen.lengths)
