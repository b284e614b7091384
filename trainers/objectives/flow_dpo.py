"""Flow-DPO: Diffusion-DPO on the velocity errors of a rectified flow. arXiv 2501.13918."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput
from trainers.objectives.diffusion_dpo import diffusion_dpo

NEEDS = ("reference",)
LIKELIHOOD = "denoising"
PROVENANCE = "secondary"


def flow_dpo(pair: PairStats, *, beta: float = 100.0) -> ObjectiveOutput:
    """Diffusion-DPO on the velocity errors of a flow model. arXiv 2501.13918 (Flow-DPO), 2502.10248 (Step-Video).

    losses = -log sigmoid(-(beta / 2) * (D_w - D_l)), as diffusion_dpo, with e the mean of (v_theta - (eps - x0))^2 at
    x_s = (1 - s) * x0 + s * eps; (B,), lower is better, log 2 where policy = reference. So the model's target must be
    flow. rewards = -(beta / 2) * D_w and -(beta / 2) * D_l.
    Secondary: abstracts, and the script and issues of Flow-GRPO, whose beta is 100 (500 to 2000 where the loss spikes).
    Step-Video takes a smaller beta and a larger learning rate than image models, and shared noise (from memory);
    AVP-RPO's pairs are its own generations ranked by a reward, no more is known of it. Tango 2 (arXiv 2404.09956) is
    diffusion_dpo on latents of sound with beta 2000; its command line has 5000 and 2000.
    """
    return diffusion_dpo(pair, beta=beta)
