"""Flex-DPO: DPO with one beta for the chosen and a smaller one for the rejected answer. arXiv 2406.07327."""

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, require_positive
from trainers.objectives.dpo_shift import dpo_shift

NEEDS = ("reference",)
PROVENANCE = "formula not found"


def flex_dpo(pair: PairStats, *, beta_plus: float = 0.1, beta_minus: float = 0.05) -> ObjectiveOutput:
    """DPO with two betas, so that the rejected likelihood falls more slowly. arXiv 2406.07327 (3D-properties).

    losses = -log sigmoid(beta_plus * u - beta_minus * v), u and v the log-ratios (policy - reference, nats, summed
    over completion tokens) of chosen and rejected; (B,), lower is better, log 2 where policy = reference.
    Formula not found: the paper's text was not readable, and this is a reconstruction from reviews that speak of two
    knobs, beta+ and a smaller beta-. The defaults were not found either; 0.1 is DPO's and 0.05 is half of it.
    It equals dpo_shift with beta = beta_plus and shift = beta_minus / beta_plus, and dpo where both are equal. The
    paper's other remedy, an SFT term on the chosen answer, is dpo_nll.
    rewards = beta_plus * u and beta_minus * v. Displacement gets weaker, not impossible.
    """
    require_positive(beta_plus=beta_plus, beta_minus=beta_minus)
    if beta_minus > beta_plus:
        raise UserError(f"beta_minus is {beta_minus!r}; it must be at most beta_plus, {beta_plus!r}.")
    ratio = beta_minus / beta_plus
    shifted = dpo_shift(pair, beta=beta_plus, shift=ratio)
    return shifted._replace(rejected_rewards=ratio * shifted.rejected_rewards)
