"""PatchDPO: the denoising error weighted by an error map of each picture. arXiv 2412.03177."""

from torch import Tensor

from diagnostics.stats import PairStats, SequenceStats
from trainers.objectives import ObjectiveOutput, part, rewarded, widened

NEEDS = ("residual", "weights")
LIKELIHOOD = "denoising"
PROVENANCE = "code"


def patchdpo(pair: PairStats) -> ObjectiveOutput:
    """Train on both pictures, each where its map says that it is worth it; no reference. arXiv 2412.03177 (PatchDPO).

    losses = (mean of (1 - r_w) * (output - target)^2 over the chosen picture's numbers + mean of r_l * (output -
    target)^2 over the rejected one's) / 2; (B,), lower is better, at least 0. chosen is a target picture, rejected a
    contrast picture, r in [0, 1] the map of each (`weights` of its stats), the mean is over the draws too. A pair's
    loss is the mean of its two pictures', so that the mean over pairs is that over pictures.
    rewards = minus the weighted error of each. Nothing is compared with a reference, and no error is pushed up.
    """
    chosen = _weighted(pair.chosen, 1 - part(pair.chosen, "weights"))
    rejected = _weighted(pair.rejected, part(pair.rejected, "weights"))
    return rewarded((chosen + rejected) / 2, -chosen, -rejected)


def _weighted(side: SequenceStats, weights: Tensor) -> Tensor:
    """(B,) float64: the weighted mean error over draws and numbers."""
    return (weights[:, None] * widened(part(side, "residual")).square()).mean((1, 2))
