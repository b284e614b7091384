"""DPO with a negative log-likelihood term on the chosen answer. arXiv 2404.19733 and arXiv 2405.16436."""

from diagnostics.stats import PairStats
from trainers.objectives import Normalization, ObjectiveOutput, nll, require_not_negative
from trainers.objectives.dpo import dpo

NEEDS = ("reference",)
PROVENANCE = "code"


def dpo_nll(
    pair: PairStats,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    normalization: Normalization = "sequence_mean",
) -> ObjectiveOutput:
    """DPO plus alpha times the chosen answer's negative log-likelihood, which holds its probability up.

    losses = dpo(beta) + alpha * nll; (B,), lower is better; rewards as in dpo. The published codes differ in nll,
    where P is the chosen answer's summed log-prob (nats) and n its number of tokens, EOS included:
    - sequence_mean: -P / n. Iterative RPO, arXiv 2404.19733 (alpha 1); OpenRLHF. NaN where n = 0.
    - sum: -P. RPO, arXiv 2405.16436, as in the paper's main text (alpha 0.005 with beta 0.01).
    - batch_token_mean: the mean over all chosen tokens of the batch, so that long answers weigh more; TRL's
      "sigmoid" with "sft". A pair gets -P * B / (sum of n over the batch), and the mean over the B pairs is that
      mean. It is batch-coupled: a pair's loss depends on its batch, and gradient accumulation changes it.
    """
    require_not_negative(alpha=alpha)
    preference = dpo(pair, beta=beta)
    return preference._replace(losses=preference.losses + alpha * nll(pair.chosen, normalization))
