"""AWM: the denoising loss weighted by each sample's advantage. arXiv 2509.25050."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, part, require_not_negative, rewarded

NEEDS = ("reference", "kl")
LIKELIHOOD = "denoising"
COLUMNS = ("chosen_advantage", "rejected_advantage")
PROVENANCE = "code"


def awm(pair: PairStats, *, beta: float = 1e-3) -> ObjectiveOutput:
    """Policy gradient with minus the denoising error as the log-prob: advantage-weighted matching. arXiv 2509.25050.

    losses = the mean over the pair's two samples of -A * exp(l - sg(l)) + beta * d, l = -e, e the policy's denoising
    error (mean over the sample's numbers and the draws; velocity target, w(t) = 1), sg a stop-gradient, d the mean of
    (output - reference's output)^2; (B,), lower is better. A is a sample's advantage, of any sign: the columns
    chosen_advantage and rejected_advantage (the reward's distance from its prompt's mean, in standard deviations). The
    gradient is that of A * e: a sample of negative advantage is pushed up. rewards = l of either side.
    The ratio is 1 wherever a sample is used once after it was made, so that the authors' PPO clip never acts; it is not
    here. Their code offers other weights w(t) and a second penalty on the distance from a moving average.
    beta from 1e-4 to 3e-3 is theirs; the default lies between.
    """
    require_not_negative(beta=beta)
    sides = (pair.chosen, column(pair, "chosen_advantage")), (pair.rejected, column(pair, "rejected_advantage"))
    terms = [-a * (s.logps - s.logps.detach()).exp() + beta * s.masked_sum(part(s, "per_token_kl")) for s, a in sides]
    return rewarded((terms[0] + terms[1]) / 2, pair.chosen.logps, pair.rejected.logps)
