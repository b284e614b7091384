"""DSPO: the chosen sample's score, moved by the preference the model still lacks. ICLR 2025; code: arXiv 2511.03317."""

from torch import sigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, part, references, require_positive, rewarded, widened

NEEDS = ("reference", "residual")
LIKELIHOOD = "denoising"
PROVENANCE = "code"


def dspo(pair: PairStats, *, beta: float = 0.001) -> ObjectiveOutput:
    """Score matching on the chosen sample, its target moved by the preference still to learn. ICLR 2025 (DSPO).

    losses = the mean over draws and the sample's numbers of ((f - y) - beta * (1 - sigmoid(u)) * (f - f_ref))^2, f and
    f_ref the outputs of policy and reference on the chosen sample, y the target, u = -(beta / 2) * (D_w - D_l),
    D = e_policy - e_reference, e the denoising error; (B,), lower is better, the chosen sample's denoising error where
    policy = reference. Gradients run through the sigmoid too, so the rejected sample acts through it alone.
    rewards = -(beta / 2) * D_w and -(beta / 2) * D_l.
    Direct Score Preference Optimization for Diffusion Model Alignment, read in the code of arXiv 2511.03317 for SD 1.5,
    whose beta is 0.001 (there u is nearly 0 and the weight nearly 1/2). For SDXL the same code drops f - y; not here.
    """
    require_positive(beta=beta)
    chosen, rejected = (beta / 2 * values for values in logratios(pair))
    own = widened(part(pair.chosen, "residual"))
    apart = own - part(references(pair)[0], "residual")  # the target is the same
    weight = beta * sigmoid(rejected - chosen)
    return rewarded((own - weight[:, None, None] * apart).square().mean((1, 2)), chosen, rejected)
