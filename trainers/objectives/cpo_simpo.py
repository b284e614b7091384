"""SimPO with the likelihood term of CPO. The authors of arXiv 2401.08417, in their code for it."""

from diagnostics.stats import PairStats
from trainers.objectives import Mean, ObjectiveOutput, nll, require_mean, require_not_negative
from trainers.objectives.simpo import simpo

NEEDS = ()
PROVENANCE = "code"


def cpo_simpo(
    pair: PairStats,
    *,
    beta: float = 10.0,
    gamma_beta_ratio: float = 0.54,
    alpha: float = 0.05,
    normalization: Mean = "sequence_mean",
) -> ObjectiveOutput:
    """SimPO plus alpha times the chosen answer's negative log-likelihood. arXiv 2405.14734 with arXiv 2401.08417.

    losses = -log sigmoid(beta * (p_chosen - p_rejected) - gamma) + alpha * nll, p the mean log-prob of completion
    tokens (nats per token, EOS included), gamma = gamma_beta_ratio * beta; (B,), lower is better. NaN where a
    completion has no token. rewards = beta * p_chosen and beta * p_rejected, as in simpo. No reference.
    Defaults are the authors' for Llama-3-8B-Instruct (fe1ixxu/CPO_SIMPO: beta 10, gamma 5.4, alpha 0.05).
    nll of the chosen answer is that of cpo: sequence_mean, the mean over the pair's own chosen tokens, or
    batch_token_mean, one mean over all chosen tokens of the batch, which couples the batch: that code and TRL (`simpo`
    with cpo_alpha > 0). It works against a falling chosen likelihood, with less weight than in cpo.
    """
    require_not_negative(alpha=alpha)
    require_mean(normalization)
    preference = simpo(pair, beta=beta, gamma_beta_ratio=gamma_beta_ratio)
    return preference._replace(losses=preference.losses + alpha * nll(pair.chosen, normalization))
