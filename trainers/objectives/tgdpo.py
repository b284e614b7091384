"""DPO with token rewards from an already trained policy. arXiv 2506.14574."""

from dataclasses import replace
from typing import Any

import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_not_negative, require_positive, rewarded
from trainers.objectives.dpo import dpo

NEEDS = ("reference", "reward model")
PROVENANCE = "code"


def tgdpo(pair: PairStats, *, beta: float = 0.1, alpha: float = 0.5) -> ObjectiveOutput:
    """DPO whose tokens are weighted by the reward that another trained policy gives them. arXiv 2506.14574.

    losses = -log sigmoid(beta * (sum over chosen tokens of (1 + alpha * g_t) * u_t - sum over rejected tokens of
    (1 - alpha * g_t) * v_t)), u_t and v_t the log-ratios (policy - reference, nats) of completion tokens and
    g_t = beta * (log-prob of the token under the reward policy - under the reference), in nats; (B,), lower is
    better, log 2 where policy = reference.
    The reward policy (key reward_model, a model already trained by DPO or SimPO with the same tokenizer) is
    PairStats.extra["reward_chosen"] and ["reward_rejected"]; g has no gradient. Where alpha * |g_t| is above 1 a
    token's weight changes its sign, as published.
    alpha is how much the token rewards count; 0 is dpo. rewards = beta * the plain sums of u_t and of v_t, without the
    weights, as the authors log them.
    beta 0.1 and alpha 0.5 are the authors' defaults. It does not stop displacement: it moves the change to tokens
    that the reward policy finds good (chosen) or bad (rejected).
    """
    require_positive(beta=beta)
    require_not_negative(alpha=alpha)
    chosen, rejected = logratios(pair)
    sides = _weigh(pair, "chosen", beta * alpha) | _weigh(pair, "rejected", -beta * alpha)
    return rewarded(dpo(replace(pair, **sides), beta=beta).losses, beta * chosen, beta * rejected)


def _weigh(pair: PairStats, name: str, scale: float) -> dict[str, Any]:
    """One side under policy and reference, its log-probs times 1 + scale * (reward policy - reference)."""
    if f"reward_{name}" not in pair.extra:
        raise UserError("this objective reads token rewards from another trained policy: set reward_model to one.")
    side, reference = getattr(pair, name), getattr(pair, f"ref_{name}")
    rewards = (pair.extra[f"reward_{name}"].per_token_logps - reference.per_token_logps).detach()
    weights = torch.where(side.completion_mask.bool(), 1 + scale * rewards, 0.0)  # no NaN of the padding
    return {
        name: replace(side, per_token_logps=weights * side.per_token_logps, summed=None),
        f"ref_{name}": replace(reference, per_token_logps=weights * reference.per_token_logps, summed=None),
    }
