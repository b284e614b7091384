"""RankDPO: ranked lists of samples, wrong order at the top costing most. arXiv 2410.18013."""

from typing import Literal, get_args

import torch
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, lists, logratios, require_choice, require_positive, rewarded

NEEDS = ("reference", "lists")
LIKELIHOOD = "denoising"
COLUMNS = ("chosen_score", "rejected_score")
PROVENANCE = "paper"

Ranks = Literal["predicted", "labels"]
Gains = Literal["win_share", "score"]


def rankdpo(
    pair: PairStats, *, beta: float = 2500.0, ranks: Ranks = "predicted", gains: Gains = "win_share"
) -> ObjectiveOutput:
    """Diffusion-DPO over all pairs of a list of samples, weighted by what their exchange costs. arXiv 2410.18013.

    losses = -sum over i preferred to j of Delta_ij * log sigmoid(-beta * (s_i - s_j)), over the K different samples of
    the row's prompt; s_i = e_policy - e_reference, e the denoising error (mean over the sample's numbers); (B,), lower
    is better. Delta_ij = |2^phi_i - 2^phi_j| * |1 / log(1 + r_i) - 1 / log(1 + r_j)|, natural logs, without gradient.
    phi_i is how often sample i wins against the others of its list, over all judges, divided by the comparisons (a tie
    is no win), from the columns chosen_score and rejected_score: a number, or a list with a number of each judge.
    With gains = score, phi is the score itself (the mean over judges). i is preferred to j where phi_i > phi_j.
    r_i is the rank, 1 the best: predicted by the current scores (lowest s first; ties in the order of the items), or of
    the labels phi. The figure's caption reads as the first; Eq. 6 and Algorithm 2 of the text, read in a mirror, take
    the second. Every row carries its list's loss, so a list of n rows weighs n in the mean; a sample in several rows is
    one item. rewards = -beta * s of the row's two samples. Two samples: 0.5325 times diffusion_dpo with twice the beta.
    beta was not found: 2500, which is diffusion_dpo's default, is ours. The authors' lists hold 4 samples of 4 models,
    each with noise of its own; their judges are 5, their norms are sums.
    """
    require_positive(beta=beta)
    require_choice(get_args(Ranks), ranks=ranks)
    require_choice(get_args(Gains), gains=gains)
    chosen, rejected = (beta * values for values in logratios(pair))
    items = lists(pair)
    rewards, together = items.items(chosen, rejected), items.together()
    scores = items.items(column(pair, "chosen_score"), column(pair, "rejected_score")).view(len(together), -1)
    wins = (scores[:, None] > scores).to(scores.dtype).mean(-1) * together
    phi = scores.mean(-1) if gains == "score" else wins.sum(-1) / (together.sum(-1) - 1).clamp(min=1)
    rank = items.ranks(rewards.detach() if ranks == "predicted" else phi)
    gain, discount = 2**phi, 1 / rank.log1p()
    delta = (gain[:, None] - gain).abs() * (discount[:, None] - discount).abs()
    preferred = together & (phi[:, None] > phi)
    terms = torch.where(preferred, -delta * logsigmoid(rewards[:, None] - rewards), 0.0).sum(-1)
    return rewarded(items.totals(terms), chosen, rejected)
