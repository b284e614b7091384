"""Sequence likelihood calibration: a hinge on log-probs, with the chosen's likelihood. arXiv 2305.10425 (SLiC-HF)."""

import torch

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, require_not_negative, rewarded

NEEDS = ()
PROVENANCE = "code"


def slic(pair: PairStats, *, delta: float = 1.0, alpha: float = 0.1) -> ObjectiveOutput:
    """Widen the margin of summed log-probs to delta, and hold the chosen answer up. arXiv 2305.10425.

    losses = max(0, delta - P_chosen + P_rejected) + alpha * -P_chosen, P the log-prob (nats) summed over completion
    tokens, EOS included; (B,), lower is better. delta is the wanted margin in nats, alpha (the paper's lambda) the
    weight of the negative log-likelihood, which is a sum over tokens as the log-prob in the margin is.
    rewards = P_chosen and P_rejected. No reference.
    Defaults and form are those of HALOs (there beta and lambda_coef), whose likelihood target is the chosen answer;
    the paper's is the answer of the SFT data.
    The hinge alone can be met while both likelihoods fall; the likelihood term works against that at every step.
    """
    require_not_negative(delta=delta, alpha=alpha)
    chosen, rejected = pair.chosen.logps, pair.rejected.logps
    losses = torch.relu(delta - chosen + rejected) - alpha * chosen
    return rewarded(losses, chosen, rejected)
