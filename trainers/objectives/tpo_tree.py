"""Tree preference optimization: ranked lists of reasoning chains, weighted by steps. arXiv 2410.12854."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.errors import UserError
from diagnostics.stats import PairStats, SequenceStats, wide
from trainers.objectives import ObjectiveOutput, column, lists, part, require_positive, rewarded

NEEDS = ("reference", "lists", "steps")
COLUMNS = ("chosen_score", "rejected_score")
PROVENANCE = "recall"


def tpo_tree(pair: PairStats, *, beta: float = 0.5) -> ObjectiveOutput:
    """LambdaRank over a prompt's list of answers, with rewards that weigh reasoning steps. arXiv 2410.12854.

    losses = -sum_{s_i > s_j} |2^s_i - 2^s_j| * |1 / log(1 + rank_i) - 1 / log(1 + rank_j)| * log sigmoid(r_i - r_j)
    over the different answers of the row's prompt, s their scores, rank 1 for the highest score, natural log; (B,),
    lower is better. r = beta * weighted mean over the answer's steps of the mean log-ratio (policy - reference, nats
    per token) of the step's tokens; a step's weight is 1 + step_similarity, from 0 to 2. Tokens outside steps do not
    count; r is NaN for an answer without any step, and 0 where all its steps weigh 0 (the best answer has none of
    them). Only the scores say which answer is better; keep them small, for 2^s grows fast. Every row carries its list's
    loss, so a list of n rows weighs n in the mean; an answer in several rows is one item, with the score of the first.
    rewards = r of the row's chosen and rejected answer.
    Not read again (recall): the ranking loss is the standard LambdaRank and the paper's own ranks, logarithm and
    scaling of scores are uncertain; step rewards and beta 0.5 are those of the authors' code. Do not compare with
    that code's loss: it has no such weights and falls as the ranking gets worse.
    Only differences count, so all likelihoods may fall.
    """
    require_positive(beta=beta)
    chosen = beta * _step_reward(pair.chosen, pair.ref_chosen)
    rejected = beta * _step_reward(pair.rejected, pair.ref_rejected)
    items = lists(pair)
    scores = items.items(column(pair, "chosen_score"), column(pair, "rejected_score"))
    rewards = items.items(chosen, rejected)
    together = items.together()
    gains, discounts = torch.exp2(scores), 1 / torch.log(1 + items.ranks(scores))
    weights = (gains[:, None] - gains).abs() * (discounts[:, None] - discounts).abs()
    better = together & (scores[:, None] > scores)
    terms = torch.where(better, -weights * logsigmoid(rewards[:, None] - rewards), 0.0).sum(-1)
    losses = items.totals(terms)
    return rewarded(losses, chosen, rejected)


def _step_reward(policy: SequenceStats, reference: SequenceStats | None) -> Tensor:
    """(B,) nats per token: mean log-ratio of each step, averaged over steps with weights 1 + similarity."""
    if reference is None:
        raise UserError("this objective compares with a reference: set 'reference' to live or precomputed.")
    steps = torch.where(policy.completion_mask.bool(), part(policy, "step_ids"), 0)
    numbers = torch.arange(1, int(steps.max()) + 1, device=steps.device)
    inside = steps[:, None] == numbers[:, None]  # (B, K, T)
    counts = inside.sum(-1)

    def step_mean(values: Tensor) -> Tensor:
        sums = torch.where(inside, values[:, None], 0.0).sum(-1, dtype=wide(values.device))
        return sums / counts.clamp(min=1)

    weights = torch.where(counts > 0, 1 + step_mean(part(policy, "step_similarity").detach()), 0.0)
    means = step_mean(policy.per_token_logps - reference.per_token_logps)
    total = weights.sum(-1)
    rewards = (weights * means).sum(-1) / torch.where(total == 0, 1.0, total)  # 0 / 0 would be NaN
    return torch.where((counts > 0).any(-1), rewards, torch.nan)
