"""TDPO: Diffusion-DPO between two captions of one picture. arXiv 2509.25771."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput
from trainers.objectives.diffusion_dpo import diffusion_dpo

NEEDS = ("reference",)
LIKELIHOOD = "denoising"
PROVENANCE = "derivation"


def tdpo_caption(pair: PairStats, *, beta: float = 5000.0) -> ObjectiveOutput:
    """Diffusion-DPO with one picture, its caption before a perturbed one. arXiv 2509.25771 (TDPO of TPO).

    losses = -log sigmoid(-(beta / 2) * (D_w - D_l)), as diffusion_dpo; (B,), lower is better, log 2 where policy =
    reference, and log 2 without gradient where the captions are the same. Chosen and rejected are one sample at one
    time and one noise: x_t is identical, only the caption differs. rewards = -(beta / 2) * D_w and -(beta / 2) * D_l.
    Derivation: the authors' repository could not be read, only what others say of it: captions are perturbed by a
    language model (content, attribute, place, context), gradients are clipped, and which of them is not known. beta is
    that of diffusion_dpo. Not the token-level tdpo1 and tdpo2.
    """
    return diffusion_dpo(pair, beta=beta)
