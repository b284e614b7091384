"""TKTO: Diffusion-KTO over captions of one picture. arXiv 2509.25771."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput
from trainers.objectives.diffusion_kto import diffusion_kto

NEEDS = ("reference", "whole batch")
LIKELIHOOD = "denoising"
PROVENANCE = "derivation"


def tkto(
    pair: PairStats, *, beta: float = 1000.0, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> ObjectiveOutput:
    """Diffusion-KTO with one picture, its caption desirable and a perturbed one not. arXiv 2509.25771 (TKTO of TPO).

    losses = those of diffusion_kto (z is a stop-gradient); (B,), lower is better. Chosen and rejected are one sample at
    one time and one noise under its caption and under a perturbed one. rewards = beta * g_w and beta * g_l.
    Derivation: the authors' repository could not be read; beta and weights are those of diffusion_kto.
    """
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    return diffusion_kto(pair, beta=beta, **weights)
