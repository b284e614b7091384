"""Triple preference optimization: a reference-free pair plus the likelihood of a gold answer. arXiv 2405.16681."""

from torch.nn.functional import logsigmoid

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives import (
    Mean,
    ObjectiveOutput,
    nll,
    require_mean,
    require_not_negative,
    require_positive,
    rewarded,
)
from trainers.objectives.simpo import simpo

NEEDS = ("gold",)
PROVENANCE = "TRL"


def triple_po(
    pair: PairStats,
    *,
    beta: float = 0.01,
    alpha: float = 1.0,
    gamma: float = 0.5,
    length_normalized: bool = False,
    normalization: Mean = "sequence_mean",
) -> ObjectiveOutput:
    """Widen the margin of log-probs while learning a third, gold answer. arXiv 2405.16681 (Triple-PO, TPO).

    losses = -log sigmoid(beta * (P_w - P_l)) + alpha * NLL_gold, P the log-probs (nats, summed over completion tokens,
    EOS included) of chosen (w) and rejected (l); (B,), lower is better; rewards = beta * P_w and beta * P_l.
    length_normalized=True is TPO-L: -log sigmoid(beta * (p_w - p_l) - gamma) + alpha * NLL_gold with the means p per
    token, rewards = beta * p_w and beta * p_l; only it uses gamma.
    NLL_gold is that of the gold answer (text field 'gold'), P_g its summed log-prob and n its number of tokens:
    - sequence_mean: -P_g / n, the mean over its own tokens.
    - batch_token_mean: -P_g * B / (sum of n over the batch), one mean over all gold tokens of the batch: TRL. Long
      answers weigh more, and gradient accumulation changes it.
    NaN where an answer of a mean has no token.
    Defaults are TRL's; its learning rate is 5e-7. No reference is read. Tree TPO is another method.
    Where the chosen answer is the gold one the NLL holds its likelihood up; otherwise both can fall.
    """
    require_positive(beta=beta)
    require_not_negative(alpha=alpha, gamma=gamma)
    require_mean(normalization)
    if not isinstance(length_normalized, bool):
        raise UserError(f"length_normalized is {length_normalized!r}; it must be true or false.")
    if "gold" not in pair.extra:
        raise UserError("this objective reads a third answer, the text field 'gold', which the data does not have.")
    if length_normalized:
        preference = simpo(pair, beta=beta, gamma_beta_ratio=gamma / beta)
    else:
        chosen, rejected = beta * pair.chosen.logps, beta * pair.rejected.logps
        preference = rewarded(-logsigmoid(chosen - rejected), chosen, rejected)
    return preference._replace(losses=preference.losses + alpha * nll(pair.extra["gold"], normalization))
