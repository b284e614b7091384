"""LPO: SPO with a judge of latents. arXiv 2502.01051."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput
from trainers.objectives.spo import spo

NEEDS = ("reference",)
LIKELIHOOD = "steps"
PROVENANCE = "code"


def lpo(pair: PairStats, *, beta: float = 500.0, clip: float = 0.1) -> ObjectiveOutput:
    """SPO with pairs that a latent reward model chose. arXiv 2502.01051 (LPO).

    losses = those of spo; (B,), lower is better, log 2 where policy = reference. What differs is the judge, a reward
    model on noised latents, and the gap that a pair needs, which grows with the noise: 0.35 to 0.5 (SDXL 0.45 to 0.6).
    rewards = beta * the mean over steps of log r. beta 500 and K 4 are the authors'; with clip 0.1 the margin of one
    step lies within +-100, so that most of the loss is saturated or clamped.
    """
    return spo(pair, beta=beta, clip=clip)
