"""DDO: the likelihood ratio to the reference as a discriminator of data and own samples. arXiv 2503.01103."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_not_negative, require_positive, rewarded

NEEDS = ("reference",)
LIKELIHOOD = "denoising"
PROVENANCE = "secondary"


def ddo(pair: PairStats, *, beta: float = 0.05, alpha: float = 4.0) -> ObjectiveOutput:
    """Tell samples of the data from the reference's own by the likelihood ratio alone. arXiv 2503.01103 (DDO).

    losses = -log sigmoid(-beta * D_w) - alpha * log sigmoid(beta * D_l), D = e_policy - e_reference, e the denoising
    error (mean over the sample's numbers); (B,), lower is better, (1 + alpha) * log 2 where policy = reference.
    chosen is a sample of the data, rejected one that the reference made; the two need not belong together. For the next
    round the reference becomes the best model so far. rewards = -beta * D_w and -beta * D_l.
    Secondary: the training code is not released. Ranges read for diffusion models: beta 0.01 to 0.1, alpha 0.5 to 6,
    without dropout and without autocast; the defaults are ours within them, and with errors that are means such a beta
    is weak (whether theirs are sums is not known). Each term sees the absolute error, so neither can ride on the other.
    """
    require_positive(beta=beta)
    require_not_negative(alpha=alpha)
    chosen, rejected = (beta * values for values in logratios(pair))
    return rewarded(-logsigmoid(chosen) - alpha * logsigmoid(-rejected), chosen, rejected)
