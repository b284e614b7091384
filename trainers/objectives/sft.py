"""Supervised fine-tuning on the chosen answers, the stage before a preference objective. arXiv 2507.00018."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, rewarded

NEEDS = ()
PROVENANCE = "recall"


def sft(pair: PairStats) -> ObjectiveOutput:
    """Raise the likelihood of the chosen answers; the rejected ones are only looked at. arXiv 2507.00018.

    losses = -p_chosen, p the mean log-prob of completion tokens (nats per token, EOS included); (B,), lower is better.
    rewards = p_chosen and p_rejected, so that the margin shows how far SFT alone tells them apart. NaN where the
    completion has no token. The cross-entropy itself is recall: the standard formula, its source was not read again.
    The paper's advice is a much smaller learning rate for SFT before DPO than is usual (its values were not found);
    its f-divergence variants are not here (formula not found).
    """
    return rewarded(-pair.chosen.avg_logps, pair.chosen.avg_logps, pair.rejected.avg_logps)
