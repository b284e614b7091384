"""Diffusion-DRO: expert samples ranked before the policy's own by a hinge. arXiv 2510.18353."""

from torch import relu

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_not_negative, rewarded

NEEDS = ("reference",)
LIKELIHOOD = "denoising"
PATH = "own"
PROVENANCE = "code"


def diffusion_dro(pair: PairStats, *, margin: float = 0.001) -> ObjectiveOutput:
    """Rank an expert's sample before the policy's own by their denoising errors, with a hinge. arXiv 2510.18353.

    losses = max(0, D_w - D_l + margin), D = e_policy - e_reference, e the denoising error (mean over the sample's
    numbers); (B,), lower is better, margin where policy = reference, and no gradient beyond the margin.
    chosen is an expert's sample under forward noise, rejected one that the policy made, its error taken on the policy's
    own sampling path: the likelihood's path must be the model's own on that side. rewards = -D_w and -D_l.
    margin 0.001 is the authors', with a learning rate of 1e-4 and a buffer of 4.
    """
    require_not_negative(margin=margin)
    chosen, rejected = logratios(pair)
    return rewarded(relu(rejected - chosen + margin), chosen, rejected)
