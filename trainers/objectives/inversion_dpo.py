"""Inversion-DPO: preferences by the distance from the reference along inverted paths. arXiv 2507.11554."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats, SequenceStats
from trainers.objectives import ObjectiveOutput, part, require_positive, rewarded

NEEDS = ("reference", "kl", "alphas")
LIKELIHOOD = "denoising"
PATH = "reference_inversion"
PROVENANCE = "code"


def inversion_dpo(pair: PairStats, *, beta: float = 2000.0) -> ObjectiveOutput:
    """Leave the reference on the chosen sample's inverted path more than on the rejected one's. arXiv 2507.11554.

    losses = -log sigmoid(+(beta / 2) * (d_w - d_l)), d = mean over the draws of 1 / (2 * a) * the mean over the
    sample's numbers of (output - reference's output)^2, a = alpha-bar of the draw; (B,), lower is better, log 2 where
    policy = reference, and without gradient there. rewards = +(beta / 2) * d_w and +(beta / 2) * d_l.
    It rewards deviation on the chosen sample and has no error to a target: no likelihood contrast, and nothing keeps
    the chosen sample's error from rising. As d is a square, training that starts at the reference itself does not move:
    the policy must differ from it (reference_model), be it by the rounding of a lower precision. The draws must be the
    steps of the reference's DDIM inversion of the sample (the likelihood's path). The authors' are beta 2000, 80 steps
    and guidance 2.
    """
    require_positive(beta=beta)
    chosen, rejected = (beta / 2 * _deviation(side) for side in (pair.chosen, pair.rejected))
    return rewarded(-logsigmoid(chosen - rejected), chosen, rejected)


def _deviation(side: SequenceStats) -> Tensor:
    """(B,) d."""
    return side.masked_sum(part(side, "per_token_kl") / (2 * part(side, "alphas")))
