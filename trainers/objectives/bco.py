"""Binary classifier optimization with a running reward shift. arXiv 2404.04656."""

from collections.abc import Mapping

import torch
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive, rewarded

NEEDS = ("reference", "whole batch")
PROVENANCE = "TRL"


def statistics(pair: PairStats, previous: Mapping[str, float] | None, *, beta: float = 0.1) -> dict[str, float]:
    """delta: mean of all chosen and rejected rewards (beta * log-ratio) of this batch and all before it, each
    counting once (a cumulative mean, no moving average); count: how many they are, two a pair."""
    rewards = beta * torch.cat(logratios(pair))
    before = previous or {"delta": 0.0, "count": 0}
    count = before["count"] + len(rewards)
    return {"delta": (before["delta"] * before["count"] + rewards.sum().item()) / count, "count": count}


_statistics = statistics  # the keyword of the same name hides it


def bco(pair: PairStats, *, beta: float = 0.1, statistics: Mapping[str, float] | None = None) -> ObjectiveOutput:
    """Classify chosen rewards as above delta and rejected ones as below it. arXiv 2404.04656.

    losses = -log sigmoid(beta * u - delta) - log sigmoid(-(beta * v - delta)), u and v the log-ratios (policy -
    reference, nats, summed over completion tokens) of chosen and rejected; (B,), lower is better, 2 log 2 where
    policy = reference and delta = 0. rewards = beta * u and beta * v, without delta.
    Stop-gradient: delta, the running mean of all rewards, this batch's included (`statistics`; None: this batch's
    mean alone). Batch-coupled through delta.
    Published defaults: beta 0.1 (TRL) or 0.01. TRL's BCO trainer averages over all 2B answers, so its loss is half
    of this one; its optional density-ratio weights of the rejected answers are not here. With delta = 0 it is
    bco_pair. Each side is judged alone, so a falling chosen likelihood costs; a falling delta permits it again.
    """
    require_positive(beta=beta)
    chosen, rejected = (beta * values for values in logratios(pair))
    delta = (statistics or _statistics(pair, None, beta=beta))["delta"]
    losses = -logsigmoid(chosen - delta) - logsigmoid(delta - rejected)
    return rewarded(losses, chosen, rejected)
