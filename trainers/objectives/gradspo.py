"""GradSPO: SPO whose log-prob is the distance from a guided prediction. Source: NeurIPS 2025, no arXiv number known."""

from torch import Tensor

from diagnostics.stats import PairStats, SequenceStats
from trainers.objectives import ObjectiveOutput, part, references, require_positive, widened
from trainers.objectives.d3po import stepwise

NEEDS = ("reference", "alphas", "child noise")
LIKELIHOOD = "steps"
PROVENANCE = "code"
AVERAGE = 0.9  # decay of the moving average, after every update


def gradspo(pair: PairStats, *, beta: float = 10.0, clip: float = 0.1, scale: float = 0.5) -> ObjectiveOutput:
    """SPO with minus the distance from a prediction that leans towards the child. No arXiv number known (GradSPO).

    losses = the mean over steps of -log sigmoid(beta * log r_w - beta * log r_l), r = clamp(exp(l_policy - l_ref),
    1 - clip, 1 + clip), l = -mean over the sample's numbers of (f - (f_ema - scale * sqrt(1 - a) * n))^2; (B,), lower
    is better, log 2 where policy = reference. f is the noise that the model predicts at the step's parent, f_ema that
    of a moving average of the policy (decay 0.9 an update), n the noise that leads from the mean of the policy's step
    to the child, a the parent's alpha-bar; the lean and f_ema are a stop-gradient. Within the clamp f_ema and that mean
    cancel: log r_w - log r_l = -2 scale sqrt(1 - a) mean((f - f_ref) (n_w - n_l)).
    Chosen and rejected are the best and the worst child of one parent, as in spo: f is the same on both sides.
    rewards = beta * the mean over steps of log r. Defaults are the authors', whose code was read: A Gradient Guidance
    Perspective on Stepwise Preference Optimization for Diffusion Models (NeurIPS 2025).
    """
    require_positive(beta=beta, scale=scale)
    sides = zip((pair.chosen, pair.rejected), references(pair), strict=True)
    moved = (_near(own, own, scale) - _near(ref, own, scale) for own, ref in sides)
    return stepwise(pair, *moved, beta=beta, clip=clip)


def _near(model: SequenceStats, own: SequenceStats, scale: float) -> Tensor:
    """(B, S) l of a model; child, moving average and alpha-bar are those of the policy's stats."""
    lean = scale * (1 - widened(part(own, "alphas"))).sqrt()[..., None] * part(own, "noise")
    goal = (part(own, "ema_noise") - lean).detach()
    return -(widened(part(model, "predicted_noise")) - goal).square().mean(-1)
