"""DPO with a batch-wise beta on a filtered batch (beta-DPO). arXiv 2407.08639."""

from collections.abc import Mapping

import torch
from torch import Tensor

from diagnostics.stats import PairStats
from trainers.objectives import (
    ObjectiveOutput,
    logratios,
    require_between,
    require_not_negative,
    require_positive,
    rewarded,
)
from trainers.objectives.dpo import dpo

NEEDS = ("reference", "whole batch")
PROVENANCE = "code"


def statistics(pair: PairStats, previous: Mapping[str, float] | None, *, gamma: float = 0.9) -> dict[str, float]:
    """mean, std: moving averages (new = gamma * old + (1 - gamma) * batch, from 0, without bias correction) of mean
    and standard deviation (over B - 1; 0 for a single pair) of the batch's margins; count: updates so far."""
    require_between(0, 1, closed=False, gamma=gamma)
    margins = _margins(pair)
    batch = {"mean": margins.mean().item(), "std": margins.std().item() if len(margins) > 1 else 0.0}
    before = previous or {"mean": 0.0, "std": 0.0, "count": 0}
    new = {name: gamma * before[name] + (1 - gamma) * value for name, value in batch.items()}
    return {**new, "count": before["count"] + 1}


_statistics = statistics  # the keyword of the same name hides it


def beta_dpo(
    pair: PairStats,
    *,
    beta: float = 0.1,
    a: float = 0.6,
    rho: float = 0.2,
    gamma: float = 0.9,
    seed: int = 0,
    statistics: Mapping[str, float] | None = None,
) -> ObjectiveOutput:
    """DPO that leaves out outlying pairs and raises beta where the batch's margins are high. arXiv 2407.08639.

    losses = -log sigmoid(b * D) * B / n for the n pairs that are kept and 0 for the others, so that the mean over
    the batch is the mean over the kept. D = u - v, u and v the log-ratios (policy - reference, nats, summed over
    completion tokens) of chosen and rejected; (B,), lower is better. rewards = beta * u and beta * v.
    Kept: n = floor(B * (1 - rho)), at least 1, drawn without replacement with weights exp(-((D - M) / S)^2 / 2), all
    equal where S = 0. b = beta * (1 + a * (mean D of the kept - M)), at least 1e-3.
    Stop-gradient: b, M and S. M, S: moving mean and standard deviation of D with decay gamma, this batch included
    (`statistics`; None: as in a first batch). They start at 0 as in the authors' code, so early batches keep the
    pairs of the smallest margins. Batch-coupled. Published defaults: beta 0.1, a 0.6, rho 0.2, gamma 0.9.
    Equals the authors' code but for the random numbers: here they come from `seed` and the number of the update, go
    to the pairs in the order of D, and are compared in log space, where no weight vanishes.
    """
    require_positive(beta=beta)
    require_not_negative(a=a, seed=seed)
    require_between(0, 1, closed=False, rho=rho)
    running = statistics or _statistics(pair, None, gamma=gamma)
    margins = _margins(pair)
    kept = _draw(margins, running, max(1, int(len(margins) * (1 - rho))), seed)
    batch_beta = max(1e-3, beta * (1 + a * (margins[kept].mean().item() - running["mean"])))
    losses = dpo(pair, beta=batch_beta).losses * (len(margins) / kept.sum())
    chosen, rejected = logratios(pair)
    return rewarded(torch.where(kept, losses, 0.0), beta * chosen, beta * rejected)


def _margins(pair: PairStats) -> Tensor:
    chosen, rejected = logratios(pair)
    return (chosen - rejected).detach()


def _draw(margins: Tensor, running: Mapping[str, float], n: int, seed: int) -> Tensor:
    """(B,) True for n pairs. The n largest of log weight - log exponential noise are a draw without replacement."""
    update = int(running.get("count", 0))
    generator = torch.Generator().manual_seed((int(seed) * 1_000_003 + update) % 2**32)  # it reads 32 bits
    noise = torch.empty(len(margins), dtype=torch.float64).exponential_(generator=generator).to(margins.device)
    order = margins.argsort()  # so that the order of pairs in the batch does not matter
    distances = (margins[order] - running["mean"]) / running["std"] if running["std"] > 0 else torch.zeros_like(margins)
    rows = order[(-0.5 * distances**2 - noise.log()).topk(n).indices]
    return torch.zeros_like(margins, dtype=torch.bool).index_fill(0, rows, True)
