"""Diffusion-DPO: preferences between two samples by their denoising errors. arXiv 2311.12908."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive, rewarded

NEEDS = ("reference",)
LIKELIHOOD = "denoising"
PROVENANCE = "code"


def diffusion_dpo(pair: PairStats, *, beta: float = 5000.0) -> ObjectiveOutput:
    """Lower the chosen sample's denoising error against the reference's more than the rejected one's. arXiv 2311.12908.

    losses = -log sigmoid(-(beta / 2) * (D_w - D_l)), D = e_policy - e_reference, e the denoising error: the mean over
    the sample's numbers of (output - target)^2, at the same time and the same noise for both sides and both models (of
    several draws the mean; the authors draw one); (B,), lower is better, log 2 where policy = reference.
    rewards = -(beta / 2) * D_w and -(beta / 2) * D_l. The sigmoid is taken of each pair, the mean of the losses.
    beta 5000 is theirs, with a learning rate of 1e-8 times the effective batch of 2048 and 2000 steps. Other trainers
    write beta for this beta / 2: beta_dpo 2500 of diffusers is beta 5000 here. Both errors can rise while the margin
    grows (arXiv 2511.03317).
    """
    require_positive(beta=beta)
    chosen, rejected = (beta / 2 * values for values in logratios(pair))
    return rewarded(-logsigmoid(chosen - rejected), chosen, rejected)
