"""Anchored direct preference optimization, soft pairwise form. arXiv 2510.18913."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_between, require_positive, rewarded

NEEDS = ("reference",)
PROVENANCE = "derivation"


def adpo(pair: PairStats, *, tau: float = 0.8, preference: float = 1.0) -> ObjectiveOutput:
    """Cross-entropy of a soft preference, with the reference as the anchor. arXiv 2510.18913 (ADPO).

    losses = -q log sigmoid((u - v) / tau) - (1 - q) log sigmoid(-(u - v) / tau), u and v the log-ratios (policy -
    anchor, nats, summed over completion tokens) of chosen and rejected; (B,), lower is better, log 2 where policy =
    anchor. q = `preference` is the probability that the chosen answer is the better one.
    This is a derivation: the exact case of two answers of the listwise loss -sum_i q_i log softmax_i((s_i -
    anchor_i) / tau) in the author's code, which has tau 0.8, groups of 8, q from rewards, the previous policy as the
    anchor, and a tau that adapts to entropy and reward. None of these is done here; versions of the paper differ.
    q = 1 is dpo with beta = 1 / tau, q = 1 - e is dpo with labels flipped at rate e (cDPO). With q < 1 the margin is
    pulled to tau * log(q / (1 - q)) and no further. rewards = u / tau and v / tau.
    The loss sees u - v only, so that both likelihoods can fall.
    """
    require_positive(tau=tau)
    require_between(0, 1, preference=preference)
    chosen, rejected = logratios(pair)
    margins = (chosen - rejected) / tau
    losses = -preference * logsigmoid(margins) - (1 - preference) * logsigmoid(-margins)
    return rewarded(losses, chosen / tau, rejected / tau)
