"""How far the two sides have come apart, measured from the reference."""

from torch import Tensor

from diagnostics.columns import Column
from diagnostics.measures.logratios import chosen_logratios, rejected_logratios
from diagnostics.stats import PairStats

NEEDS = {"logps", "reference"}
COLUMNS = {
    "logratio_margin": Column(
        "log-ratio margin",
        "nats",
        "chosen minus rejected log-ratio",
        mean="differential_mode",
    ),
}


def logratio_margin(pair: PairStats) -> Tensor:
    """chosen_logratios - rejected_logratios: the margin that DPO widens, before beta multiplies it.

    (B,) float64 in nats; positive = the policy prefers the chosen answer more than the reference does. It can
    grow while both log-ratios fall. NaN without a reference.
    Source: arXiv 2305.18290, Eq. 7 (the term inside beta).
    """
    return chosen_logratios(pair) - rejected_logratios(pair)
