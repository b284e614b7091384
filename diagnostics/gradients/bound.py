"""How large the gradient of a pairwise loss can be, from the gradients of single tokens. arXiv 2504.12083 (RRPO)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from diagnostics.batch import Batch
from diagnostics.forward import run
from diagnostics.logits import logps
from diagnostics.stats import wide


def token_norms(model: nn.Module, batch: Batch, weights: Mapping[str, Tensor]) -> Tensor:
    """(N,) Euclidean norms over all `weights` of grad ln pi(y_t | before), one a completion token, in row order.

    One backward pass a token, so only for a few short answers. Sums in float64.
    """
    values = logps(run(model, batch))
    return torch.stack([norm(torch.autograd.grad(v, list(weights.values()), retain_graph=True)) for v in values])


def norm(gradient: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of a gradient in several pieces, in float64."""
    return torch.stack([g.to(wide(g.device)).square().sum() for g in gradient]).sum().sqrt()


def dpo_bound(beta: float, largest: float, chosen_length: int, rejected_length: int) -> float:
    """beta * M * (|y+| + |y-|): no pair's DPO gradient is longer, since d loss / d margin <= 1. arXiv 2504.12083.

    M: the largest norm of one token's gradient; lengths in tokens. At the reference the factor is 1/2 instead of 1.
    """
    return beta * largest * (chosen_length + rejected_length)


def phrase_bound(beta: float, largest: float, marks: Sequence[Sequence[int]]) -> float:
    """beta * M * 2 N L: no pair's RRPO rank term has a longer gradient. arXiv 2504.12083.

    marks: phrase number of each token of both answers, 0 outside. N: phrases of the answer that has more; L: tokens
    of the longest phrase. It is below dpo_bound only where 2 N L < |y+| + |y-|, which few long phrases break.
    """
    phrases, longest = phrase_sizes(marks)
    return beta * largest * 2 * phrases * longest


def phrase_sizes(marks: Sequence[Sequence[int]]) -> tuple[int, int]:
    """N and L of a pair: phrases of the answer that has more, tokens of the longest phrase; 0, 0 without any."""
    counts = [[side.count(i) for i in sorted(set(side) - {0})] for side in map(list, marks)]
    return max(map(len, counts), default=0), max((n for side in counts for n in side), default=0)
