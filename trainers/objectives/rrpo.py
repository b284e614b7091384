"""Refined regularized preference optimization: phrases that differ, and a KL term. arXiv 2504.12083."""

from dataclasses import replace

from diagnostics.stats import PairStats, SequenceStats
from trainers.objectives import ObjectiveOutput, part, require_not_negative
from trainers.objectives.dpo import dpo

NEEDS = ("reference", "kl", "phrases")
PROVENANCE = "code"


def rrpo(pair: PairStats, *, beta: float = 0.1, alpha: float = 0.01, phrases: bool = True) -> ObjectiveOutput:
    """DPO on the tokens of marked phrases plus a KL that holds the chosen answer. arXiv 2504.12083.

    losses = -log sigmoid(beta * (u' - v')) + alpha * K_chosen, u' and v' the log-ratios (policy - reference, nats) of
    chosen and rejected, summed over the completion tokens inside marked phrases, K_chosen the exact KL(reference ||
    policy) over the vocabulary in nats, summed over all completion tokens of the chosen answer; (B,), lower is better.
    The KL has a gradient. Nothing is divided by the number or length of phrases, and both answers may have different
    numbers of them. A pair without any phrase has log 2 + alpha * K_chosen, of which only the KL has a gradient.
    phrases: False sums u' and v' over all completion tokens, the paper's ablation "w/o R*" (the marks are then not
    looked at); alpha 0 is its ablation "w/o TKL"; both together are dpo.
    rewards = beta * u' and beta * v'.
    The sign is that of the authors' code; the paper prints -E[log sigmoid(...) + alpha * K], which would reward
    divergence. Their code sums phrases over padding too where no EOS is shared; here padding never counts. They use
    alpha 0.01 with beta 0.1 (LLaVA-Video) or 0.9 (VideoChat2), and 0.05 with 0.5 (LongVU). It limits displacement:
    tokens outside phrases get no pressure, and the KL keeps the policy near the reference along the chosen answer.
    """
    require_not_negative(alpha=alpha)
    preference = dpo(_inside(pair) if phrases else pair, beta=beta)
    kl = pair.chosen.masked_sum(part(pair.chosen, "per_token_kl"))
    return preference._replace(losses=preference.losses + alpha * kl)


def _inside(pair: PairStats) -> PairStats:
    """The pair with completion masks that hold the tokens of marked phrases alone."""
    marked = {name: part(getattr(pair, name), "phrase_mask") > 0 for name in ("chosen", "rejected")}
    sides = {
        name: replace(side, completion_mask=side.completion_mask * marked[name.removeprefix("ref_")], summed=None)
        for name, side in vars(pair).items()
        if isinstance(side, SequenceStats)
    }
    return replace(pair, **sides)
