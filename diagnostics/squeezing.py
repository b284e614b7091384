"""Squeezing: what a negative gradient does to a softmax, and the argmax confidence that shows it in a model.

Source: Ren and Sutherland, Learning Dynamics of LLM Finetuning, arXiv 2407.10490.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.forward import Outputs
from diagnostics.row_stats import spread
from diagnostics.scoring import score
from diagnostics.sequences import Example
from diagnostics.token_likelihood import TokenLikelihood


def negative_step(probs: Tensor, rejected: int, rate: float) -> Tensor:
    """(V,) change of log-probs (nats) by one gradient step that lowers ln p(rejected) in the logits z of a softmax.

    d ln p(rejected) / dz = e_rejected - p, so z moves by rate (p - e_rejected) and
    change_i = rate (p_i - [i = rejected]) - ln sum_j p_j exp(rate (p_j - [j = rejected])). arXiv 2407.10490.
    """
    return _moved(probs, probs - _one(probs, rejected), rate)


def preference_step(probs: Tensor, chosen: int, rejected: int, rate: float) -> Tensor:
    """(V,) the same for the step of a preference loss on two one-token answers to one prompt.

    It lowers ln p(rejected) and raises ln p(chosen) at the same softmax, so p cancels: z moves by
    rate (e_chosen - e_rejected). Own derivation.
    """
    return _moved(probs, _one(probs, chosen) - _one(probs, rejected), rate)


def confidence(model: nn.Module, pairs: Sequence[Example], *, likelihood: TokenLikelihood) -> Iterator[dict[str, Any]]:
    """pair_id, side, argmax and rest of each answer: means over its tokens of ln max_v p and ln (1 - max_v p), nats.

    p is the distribution that predicts the token, whichever token stands there. arXiv 2407.10490.
    """
    for scored in score(model, pairs, likelihood=likelihood):
        values = [spread(scored.batch, scored.policy, v) for v in argmax_logps(scored.policy)]
        for k, side in enumerate(("chosen", "rejected")):
            lengths = (scored.stats.chosen, scored.stats.rejected)[k].lengths
            top, rest = ((v[k].double().sum(1) / lengths).tolist() for v in values)
            for i, pair in enumerate(scored.pairs):
                yield dict(pair_id=pair.pair_id, side=side, argmax=top[i], rest=rest[i])


def argmax_logps(out: Outputs) -> tuple[Tensor, Tensor]:
    """(N,) each: ln max_v p, and ln (1 - max_v p) summed from the other tokens, which keeps its digits near 1."""
    found = [_argmax_logps(out.logits(tile)) for tile in out.tiles()]
    top, rest = (torch.cat(part) for part in zip(*found, strict=True))
    return top, rest


def _argmax_logps(logits: Tensor) -> tuple[Tensor, Tensor]:
    logps = logits.log_softmax(-1)
    top, at = logps.max(-1, keepdim=True)
    return top[:, 0], logps.scatter(-1, at, -torch.inf).logsumexp(-1)


def _moved(probs: Tensor, direction: Tensor, rate: float) -> Tensor:
    moved = probs.log() + rate * direction
    return rate * direction - moved.logsumexp(-1)


def _one(probs: Tensor, i: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(i), len(probs)).to(probs)
