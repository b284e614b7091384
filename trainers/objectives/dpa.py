"""Data-augmented phrase-level alignment: phrase against phrase, and a KL term. arXiv 2405.18654 (HALVA)."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats, SequenceStats, wide
from trainers.objectives import ObjectiveOutput, part, require_not_negative
from trainers.objectives.rrpo import rrpo

NEEDS = ("kl", "phrases", "reference", "whole batch")
OPTIONAL_ROWS = {"kl_reference": "an answer to learn nothing from but to stay near the reference on: a ground truth"}
PROVENANCE = "code"


def dpa(pair: PairStats, *, alpha: float = 0.4, statistics: dict[str, float] | None = None) -> ObjectiveOutput:
    """Make each phrase of the chosen answer likelier than its counterpart, near the reference. arXiv 2405.18654.

    losses = (sum over the pair's phrases i of log(1 + exp(s_rejected,i - s_chosen,i))) / N + alpha * K, s_i the
    log-prob under the policy of the tokens of the i-th marked phrase, summed (nats, no reference, no beta, no
    division by length), N the number of phrases a pair, the mean over the batch, K the exact KL(reference || policy)
    over the vocabulary in nats, summed over all completion tokens of the row kl_reference where the data has it, else
    of the chosen answer; (B,), lower is better. The KL has a gradient.
    The mean over pairs of the contrast is the mean over all phrases of the batch, in which every phrase weighs the
    same: this couples the batch, pairs with many phrases weigh more, and gradient accumulation changes it.
    statistics: {"phrases": N} of the whole batch, where a caller has it; None: of these pairs. A pair without any
    phrase has the KL term alone, and a batch without any the contrast 0.
    Phrases are paired by their number; one that only one answer has meets s = 0 on the other side.
    rewards = log-ratios (policy - reference, nats) summed over the tokens of phrases, as in rrpo with beta 1; what the
    authors log was not found.
    The contrast was read in the authors' code; there it runs up to the largest number of phrases in the batch, so that
    the phrases that a pair lacks dilute it with log 2, and here these are masked. Their KL is over a separate data
    set of reference answers, which is the row kl_reference: one to a pair, with a prompt of its own. Without it the KL
    is over the chosen answers, a reconstruction: the authors of RRPO (arXiv 2504.12083), who had one data set,
    presumably ran it so. alpha 0.4 is theirs for 7B models (13B 0.5, VILA-13B 0.2). The KL limits displacement of the
    answers it is taken on; the contrast alone does not.
    """
    require_not_negative(alpha=alpha)
    values, there = _contrasts(pair)
    phrases = statistics["phrases"] if statistics else _phrases(there)
    contrast = values.sum(-1) / (phrases or 1.0)  # without any phrase the sum is 0
    held = pair.extra.get("kl_reference", pair.chosen)
    kl = held.masked_sum(part(held, "per_token_kl"))
    return rrpo(pair, beta=1.0)._replace(losses=contrast + alpha * kl)


def statistics(pair: PairStats, previous: dict[str, float] | None) -> dict[str, float]:
    """Mean number of phrases a pair; of this batch alone, whatever the ones before it."""
    return {"phrases": _phrases(_contrasts(pair)[1])}


def _phrases(there: Tensor) -> float:
    return int(there.sum()) / len(there)


def _contrasts(pair: PairStats) -> tuple[Tensor, Tensor]:
    """(B, N) log(1 + exp(s_rejected - s_chosen)) of each phrase number, 0 where the pair lacks it, and whether not."""
    marks = [_marks(side) for side in (pair.chosen, pair.rejected)]
    numbers = torch.arange(1, int(max(m.max() for m in marks)) + 1, device=marks[0].device)
    chosen, rejected = (_scores(side, numbers) for side in (pair.chosen, pair.rejected))
    there = torch.cat(marks, dim=1)[:, :, None].eq(numbers).any(1)
    return torch.where(there, -logsigmoid(chosen - rejected), 0.0), there


def _marks(side: SequenceStats) -> Tensor:
    """(B, T) phrase numbers of completion tokens, 0 elsewhere."""
    return torch.where(side.completion_mask.bool(), part(side, "phrase_mask"), 0)


def _scores(side: SequenceStats, numbers: Tensor) -> Tensor:
    """(B, N) log-probs in nats, summed over the tokens of each of the N phrases."""
    inside = _marks(side)[:, :, None] == numbers
    return torch.where(inside, side.per_token_logps[:, :, None], 0.0).sum(1, dtype=wide(inside.device))
