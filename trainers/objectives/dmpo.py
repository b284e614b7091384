"""DMPO: the reverse KL between the preference the model shows and the label. arXiv 2507.07510."""

from math import log, log1p

from torch.nn.functional import logsigmoid

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive, rewarded

NEEDS = ("reference",)
LIKELIHOOD = "denoising"
PROVENANCE = "code"


def dmpo(pair: PairStats, *, beta: float = 2000.0, alpha: float = 0.01) -> ObjectiveOutput:
    """KL of the model's own preference from the smoothed label, in the mode-seeking direction. arXiv 2507.07510 (DMPO).

    losses = KL(p || q) = p * log(p / q) + (1 - p) * log((1 - p) / (1 - q)), p = sigmoid(u), u = -(beta / 2) * (D_w -
    D_l), q = 1 - alpha, D = e_policy - e_reference, e the denoising error (mean over the sample's numbers); (B,), lower
    is better, 0 at u = log(q / alpha) and above 0 on either side: it has an end. Where policy = reference it is
    -log 2 - log(alpha * (1 - alpha)) / 2. rewards = -(beta / 2) * D_w and -(beta / 2) * D_l.
    alpha 0.01 and beta 2000 (SDXL 6000) are those of the code of arXiv 2511.03317, which was read.
    """
    require_positive(beta=beta, alpha=alpha)
    if alpha >= 1:
        raise UserError(f"alpha is {alpha!r}; it must be a number above 0 and below 1.")
    chosen, rejected = (beta / 2 * values for values in logratios(pair))
    margin = chosen - rejected
    yes, no = logsigmoid(margin), logsigmoid(-margin)
    losses = yes.exp() * (yes - log1p(-alpha)) + no.exp() * (no - log(alpha))
    return rewarded(losses, chosen, rejected)
