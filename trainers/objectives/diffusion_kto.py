"""Diffusion-KTO: samples that are desirable or not, by their denoising errors. arXiv 2404.04465."""

import torch
from torch import sigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_not_negative, require_positive, rewarded

NEEDS = ("reference", "whole batch")
LIKELIHOOD = "denoising"
PROVENANCE = "code"


def diffusion_kto(
    pair: PairStats, *, beta: float = 1000.0, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> ObjectiveOutput:
    """Chosen samples as gains and rejected ones as losses against the batch's mean drift. arXiv 2404.04465.

    losses = (desirable_weight * (1 - sigmoid(beta * (g_w - z))) + undesirable_weight * (1 - sigmoid(beta * (z - g_l))))
    / 2, g = -(e_policy - e_reference), e the denoising error (mean over the sample's numbers); (B,), lower is better,
    1/2 where policy = reference (weights 1). z = max(0, mean of g over all 2B samples of the batch), a stop-gradient:
    batch-coupled. Unlike diffusion_dpo there is no 1/2 at beta. rewards = beta * g_w and beta * g_l.
    A pair's loss is the mean of its two samples' terms, so the mean over pairs is that over samples. The two need not
    belong together: chosen is any sample that is desirable (one that ever won), rejected any that is not.
    beta 1000 and weights 1 are the authors', with a learning rate of 1e-7, 20,000 steps and 80 % desirable samples,
    each with noise of its own. Their code has two more estimates of z (mean of the two classes' means, and mismatched
    prompts) and other utilities than the sigmoid; not here. A fall that all samples share is not opposed.
    """
    require_positive(beta=beta)
    require_not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    chosen, rejected = logratios(pair)
    drift = torch.cat((chosen, rejected)).detach().mean().clamp(min=0)
    desirable = desirable_weight * sigmoid(beta * (drift - chosen))  # 1 - sigmoid(x) = sigmoid(-x)
    undesirable = undesirable_weight * sigmoid(beta * (rejected - drift))
    return rewarded((desirable + undesirable) / 2, beta * chosen, beta * rejected)
