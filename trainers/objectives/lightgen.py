"""LightGen: Diffusion-DPO on the diffusion head of a masked autoregressive model. arXiv 2503.08619."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput
from trainers.objectives.diffusion_dpo import diffusion_dpo

NEEDS = ("reference",)
LIKELIHOOD = "denoising"
PROVENANCE = "code"


def lightgen(pair: PairStats, *, beta: float = 5000.0) -> ObjectiveOutput:
    """Diffusion-DPO of a data picture before the model's own, on each token's diffusion head. arXiv 2503.08619.

    losses = -log sigmoid(-(beta / 2) * (D_w - D_l)), as diffusion_dpo, with e the mean error of the per-token diffusion
    head over all tokens of the picture; (B,), lower is better, log 2 where policy = reference. chosen is the data
    picture of a caption, rejected the model's own sample for it (guidance 4). rewards = -(beta / 2) * D_w and -(beta /
    2) * D_l.
    The authors released the head's loss (which takes shared noise and time) and the pair builder, not the trainer:
    their beta is not known, 5000 is that of diffusion_dpo. Their head averages over the batch before it returns, which
    would make it the sigmoid of a mean; here the sigmoid is of each pair.
    """
    return diffusion_dpo(pair, beta=beta)
