"""CPO: one picture, the condition that fits it preferred to one that does not. arXiv 2511.04753."""

from torch import relu, sigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_not_negative, require_positive, rewarded

NEEDS = ("reference",)
LIKELIHOOD = "denoising"
PROVENANCE = "code"


def cpo_condition(
    pair: PairStats, *, beta: float = 5000.0, margin: float = 0.01, alpha: float = 0.05
) -> ObjectiveOutput:
    """One sample under two conditions: a hinge on their errors, weighted as in Diffusion-DPO. arXiv 2511.04753 (CPO).

    losses = sigmoid((beta / 2) * (g - g_ref)) * max(0, g + margin) + alpha * e_w, g = e_w - e_l, e the policy's
    denoising error (mean over the sample's numbers) of the one sample under the condition that fits it (chosen) and
    under one that does not (rejected), at the same time and noise; g_ref is the reference's. The sigmoid is a weight, a
    stop-gradient. (B,), lower is better; without gradient where g < -margin and alpha = 0.
    rewards = -(beta / 2) * (e_w - e_w,ref) and -(beta / 2) * (e_l - e_l,ref).
    Defaults are the authors' for ControlNet: beta 5000, margin 0.01, alpha (their k) 0.05, with a learning rate of 1e-8
    and 4000 steps. The last term holds the fitting condition's error down.
    """
    require_positive(beta=beta)
    require_not_negative(margin=margin, alpha=alpha)
    chosen, rejected = (beta / 2 * values for values in logratios(pair))
    weight = sigmoid(rejected - chosen).detach()
    hinge = relu(pair.rejected.logps - pair.chosen.logps + margin)
    return rewarded(weight * hinge - alpha * pair.chosen.logps, chosen, rejected)
