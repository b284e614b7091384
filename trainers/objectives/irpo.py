"""In-context ranking preference optimization, over lists. arXiv 2504.15477."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives import Lists, ObjectiveOutput, column, lists, logratios, require_positive, rewarded

NEEDS = ("reference", "lists")
COLUMNS = ("chosen_relevance", "rejected_relevance")
OPTIONAL_COLUMNS = ("chosen_rank", "rejected_rank")
PROVENANCE = "code"


def irpo(pair: PairStats, *, beta: float = 1.0) -> ObjectiveOutput:
    """Raise each relevant answer of a prompt's list above the others, weighted as in DCG. arXiv 2504.15477.

    losses = -(1 / n) sum_i w_i * log sigmoid(-log mean_{j != i} exp(beta * (s_j - s_i))) over the n different
    answers of the row's prompt, s the log-ratios (policy - reference, nats, summed over completion tokens),
    w_i = (2^relevance_i - 1) / log2(1 + rank_i), rank 1 for the highest relevance, ties in the order of the items;
    (B,), lower is better. Where the data has the columns chosen_rank and rejected_rank, ranks from 1, those are used,
    as in the authors' code. Relevance is a small grade of 0 or more (2^relevance grows fast; 0 takes no part).
    A list of a single answer has loss 0. Every row carries its list's loss, so a list of n rows weighs n in the
    mean; an answer in several rows is one item, with the relevance and rank of the first. rewards = beta * s of the
    row's chosen and rejected answer.
    Two answers: half of w_chosen * dpo(chosen, rejected) + w_rejected * dpo(rejected, chosen), so relevances 1 and 0
    give exactly half of dpo. Published default: beta 1.0 (the authors' readme); their code sums over samples instead
    of averaging. Only differences count, so all likelihoods may fall.
    """
    require_positive(beta=beta)
    chosen, rejected = (beta * values for values in logratios(pair))
    items = lists(pair)
    relevance = items.items(column(pair, "chosen_relevance"), column(pair, "rejected_relevance"))
    together = items.together()
    weights = (torch.exp2(relevance) - 1) / torch.log2(1 + _ranks(pair, items, relevance)) / together.sum(-1)
    terms = weights * _behind(items.items(chosen, rejected), together)
    losses = items.totals(terms)
    return rewarded(losses, chosen, rejected)


def _ranks(pair: PairStats, items: Lists, relevance: Tensor) -> Tensor:
    """(I,) the data's ranks, from 1, or by falling relevance where the data has none."""
    if not set(OPTIONAL_COLUMNS) & set(pair.columns):
        return items.ranks(relevance)
    ranks = items.items(*(column(pair, name) for name in OPTIONAL_COLUMNS))
    if not (ranks >= 1).all():
        raise UserError("chosen_rank and rejected_rank must be numbers from 1 on: 1 is the first place.")
    return ranks


def _behind(rewards: Tensor, together: Tensor) -> Tensor:
    """(I,) -log sigmoid(-log mean over the list's other items j of exp(rewards_j - rewards_i)); 0 without others."""
    others = together & ~torch.eye(len(rewards), dtype=torch.bool, device=rewards.device)
    n, alone = others.sum(-1, dtype=rewards.dtype), ~others.any(-1)
    gaps = torch.where(others, rewards - rewards[:, None], -torch.inf)
    return torch.where(alone, 0.0, -logsigmoid(n.clamp(min=1).log() - gaps.logsumexp(-1)))
