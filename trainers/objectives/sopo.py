"""SoPo: data motions before the worse of two own samples, if that one is bad enough. arXiv 2412.05095."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, logratios, require_positive, rewarded

NEEDS = ("reference",)
LIKELIHOOD = "denoising"
COLUMNS = ("rejected_score", "similarity")
PROVENANCE = "code"


def sopo(pair: PairStats, *, beta: float = 1.0, threshold: float = 0.45) -> ObjectiveOutput:
    """A motion of the data before one of the policy's own, the hard ones weighing more. arXiv 2412.05095 (SoPo).

    losses = -log sigmoid(-beta * ((2 - p) * D_w - m * D_l)), D = e_policy - e_reference, e the denoising error (mean
    over the sample's numbers, x0 target); (B,), lower is better, log 2 where policy = reference. chosen is a motion of
    the data, rejected the lower scored of two samples that the current policy made (whole chain, without gradient).
    m = 1 where rejected_score < threshold, else 0: only the chosen error is pushed. p, the column similarity, is the
    data motion's lowest similarity to the two samples. rewards = -beta * D_w and -beta * D_l.
    m = 1 and p = 1 is diffusion_dpo with beta / 2 = 1. Read in the authors' compiled code (their sources hold the plain
    error), which has no beta (1) and threshold 0.45. There each of the four errors has noise of its own, so that not
    even policy and reference are paired; here they are.
    """
    require_positive(beta=beta)
    chosen, rejected = (beta * values for values in logratios(pair))
    bad = column(pair, "rejected_score") < threshold
    return rewarded(-logsigmoid((2 - column(pair, "similarity")) * chosen - bad * rejected), chosen, rejected)
