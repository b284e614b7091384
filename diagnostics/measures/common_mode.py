"""How far both sides have moved together, which no loss on their difference can see."""

from torch import Tensor

from diagnostics.columns import Column
from diagnostics.measures.logratios import chosen_logratios, rejected_logratios
from diagnostics.stats import PairStats

NEEDS = {"logps", "reference"}
COLUMNS = {
    "common_mode": Column(
        "common mode",
        "nats",
        "mean movement of both answers against the reference",
        mean="common_mode",
    ),
}


def common_mode(pair: PairStats) -> Tensor:
    """(chosen_logratios + rejected_logratios) / 2: the part of the movement that both sides share.

    (B,) float64 in nats; negative = both sides together lost likelihood against the reference. Losses of the margin
    (DPO, IPO, SimPO) are the same whatever it is; drifting down while logratio_margin, the differential mode, rises
    is how displacement looks. NaN without a reference.
    Source: own (the decomposition; that DPO leaves this part undetermined is arXiv 2505.23316).
    """
    return (chosen_logratios(pair) + rejected_logratios(pair)) / 2
