"""SmPO: Diffusion-DPO with preferences that are as strong as a judge's scores say. arXiv 2506.02698."""

from torch import sigmoid
from torch.nn.functional import logsigmoid

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, logratios, require_positive, rewarded

NEEDS = ("reference",)
LIKELIHOOD = "denoising"
PATH = "inversion"
COLUMNS = ("chosen_score", "rejected_score")
PROVENANCE = "code"


def smpo(
    pair: PairStats, *, beta: float = 2000.0, gain: float = 10.0, score_low: float = 0.1154, score_high: float = 0.2820
) -> ObjectiveOutput:
    """Diffusion-DPO with its margin scaled by how sure a judge is of the pair. arXiv 2506.02698 (SmPO).

    losses = -log sigmoid(-(beta / 2) * gain * (2 * p - 1) * (D_w - D_l)), D = e_policy - e_reference, e the denoising
    error (mean over the sample's numbers); (B,), lower is better, log 2 where policy = reference. p is the softmax of
    the two scores, each scaled to (score - score_low) / (score_high - score_low), for the chosen sample. p = 1 is
    diffusion_dpo with gain times its beta, p = 1/2 pushes nothing, and below it the pair is turned round.
    The likelihood's path must be inversion (the authors': DDIM inversion by the current network, each step with the
    mean of two predictions, ReNoise). rewards = -(beta / 2) * D_w and -(beta / 2) * D_l.
    Defaults are theirs: beta 2000 (5000 too), gain 10, and the lowest and highest PickScore of Pick-a-Pic, with 200
    steps. Their code takes the p of a batch's first pair for all of it; here each pair has its own.
    """
    require_positive(beta=beta, gain=gain)
    if not score_low < score_high:
        raise UserError(f"score_low is {score_low!r} and score_high {score_high!r}; score_high must be the larger one.")
    chosen, rejected = (beta / 2 * values for values in logratios(pair))
    p = sigmoid((column(pair, "chosen_score") - column(pair, "rejected_score")) / (score_high - score_low))
    return rewarded(-logsigmoid(gain * (2 * p - 1) * (chosen - rejected)), chosen, rejected)
