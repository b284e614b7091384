"""PG-DPO: Diffusion-DPO that pushes the rejected sample less where the scores are close. arXiv 2511.19049."""

from torch import sigmoid
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, logratios, require_positive, rewarded

NEEDS = ("reference",)
LIKELIHOOD = "denoising"
COLUMNS = ("chosen_score", "rejected_score")
PROVENANCE = "formula not found"


def pg_dpo(pair: PairStats, *, beta: float = 5000.0, scale: float = 1.0, epsilon: float = 1e-6) -> ObjectiveOutput:
    """Diffusion-DPO with the rejected sample scaled by how much better the chosen one scored. arXiv 2511.19049.

    losses = -log sigmoid(-(beta / 2) * (D_w - a * D_l)), a = sigmoid(scale * (r_w - r_l) / (|r_l| + epsilon)), r the
    scores in the columns chosen_score and rejected_score, D = e_policy - e_reference, e the denoising error (mean over
    the sample's numbers); (B,), lower is better, log 2 where policy = reference. a is 1/2 where the scores are equal
    (the rejected sample is pushed half as hard) and nears 1, diffusion_dpo, where r_w is far above r_l.
    rewards = -(beta / 2) * D_w and -(beta / 2) * D_l.
    Formula not found but for this part: a (Eq. 7, rejection scaling) and its place (Eq. 9) as a third-party port quotes
    them, secondary. Its scale K1 and epsilon are not known: 1 and 1e-6 are ours. The regulariser between policy and
    reference (IPR) and the switch gamma are not built. Scores at or below 0 would turn the ratio round or let it
    explode: the port takes |r_l|, as here (above 0 it is Eq. 7), and cuts the ratio at 10, needless in a sigmoid.
    """
    require_positive(beta=beta, scale=scale, epsilon=epsilon)
    chosen, rejected = (beta / 2 * values for values in logratios(pair))
    better, worse = column(pair, "chosen_score"), column(pair, "rejected_score")
    share = sigmoid(scale * (better - worse) / (worse.abs() + epsilon))
    return rewarded(-logsigmoid(chosen - share * rejected), chosen, rejected)
