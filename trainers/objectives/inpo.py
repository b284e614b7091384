"""DDIM-InPO: Diffusion-DPO at latents that DDIM inversion finds. arXiv 2503.18454."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput
from trainers.objectives.diffusion_dpo import diffusion_dpo

NEEDS = ("reference",)
LIKELIHOOD = "denoising"
PATH = "inversion"
PROVENANCE = "code"


def inpo(pair: PairStats, *, beta: float = 2000.0) -> ObjectiveOutput:
    """Diffusion-DPO on samples that are noised by inversion in place of forward noise. arXiv 2503.18454 (DDIM-InPO).

    losses = -log sigmoid(-(beta / 2) * (D_w - D_l)), as diffusion_dpo; (B,), lower is better, log 2 where policy =
    reference. What differs is where the errors are taken: x_t is the DDIM inversion of the sample by the current
    network (a grid of 10 steps, without gradient) and the target is the noise that was found, (x_t - sqrt(a) * x0) /
    sqrt(1 - a), a = alpha-bar. So the likelihood's path must be inversion. rewards = -(beta / 2) * D_w and -(beta / 2)
    * D_l. beta 2000 is the authors' (5000 too), with 400 steps.
    """
    return diffusion_dpo(pair, beta=beta)
