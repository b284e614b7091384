"""How far the likelihood of each side has moved from the reference."""

from torch import Tensor

from diagnostics.columns import Column
from diagnostics.measures import unmeasured
from diagnostics.stats import PairStats

NEEDS = {"logps", "reference"}
COLUMNS = {
    "chosen_logratios": Column(
        "log-ratio of the chosen answer",
        "nats",
        "its log-prob under the policy minus under the reference",
    ),
    "rejected_logratios": Column(
        "log-ratio of the rejected answer",
        "nats",
        "its log-prob under the policy minus under the reference",
    ),
}


def chosen_logratios(pair: PairStats) -> Tensor:
    """log p_policy(chosen) - log p_ref(chosen), summed over completion tokens, EOS included.

    (B,) float64 in nats; negative = the policy gives the chosen answer less probability than the reference does,
    which is likelihood displacement. NaN without a reference.
    Source: arXiv 2305.18290, Eq. 7 (the implicit reward divided by beta).
    """
    if pair.ref_chosen is None:
        return unmeasured(pair)
    return pair.chosen.logps - pair.ref_chosen.logps


def rejected_logratios(pair: PairStats) -> Tensor:
    """log p_policy(rejected) - log p_ref(rejected), summed over completion tokens, EOS included.

    (B,) float64 in nats; negative = the policy gives the rejected answer less probability than the reference
    does, which is what training asks for. NaN without a reference.
    Source: arXiv 2305.18290, Eq. 7 (the implicit reward divided by beta).
    """
    if pair.ref_rejected is None:
        return unmeasured(pair)
    return pair.rejected.logps - pair.ref_rejected.logps
