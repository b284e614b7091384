"""What the start model's own log-probs say about a pair before training: the reference-margin audit."""

import numpy as np
import pandas as pd

from diagnostics.columns import Column

BETA = 0.1  # DPO's usual beta, for needed_loss

COLUMNS = {
    "reference_margin": Column(
        "log-prob margin (chosen − rejected, start model)",
        "nats",
        "ln pi(y+) - ln pi(y-) of the start model: below 0 it ranks the pair the wrong way",
    ),
    "needed_loss": Column(
        "loss needed",
        "nats",
        "DPO loss (beta 0.1) below which the model ranks the pair right; ln 2 = at the start",
    ),
    "rejected_tail": Column(
        "rejected log-prob per token, start model",
        "nats per token",
        "log-prob of the rejected answer per token: how unlikely it is already",
    ),
}


def reference_margins(scored: pd.DataFrame) -> pd.DataFrame:
    """The table with reference_margin, needed_loss and rejected_tail added; lower = harder for the loss.

    reference_margin = ln pi(y+) - ln pi(y-), nats: below 0 the start model ranks the pair the wrong way round.
    needed_loss = -ln sigmoid(-beta * reference_margin), beta = 0.1: the pair is ranked right, ln pi(y+) > ln pi(y-),
        exactly where its DPO loss is below this. At the start every pair's loss is ln 2, so only a pair with a
        negative margin has to get there, and the lower the number, the longer it takes.
    rejected_tail = ln pi(y-) per token, nats: how unlikely the rejected answer is already. Pushing an unlikely answer
        down further moves mass to what the model says anyway.
    Source: arXiv 2405.19534, section 4 (reference margin, loss at which a ranking flips).
    """
    margin = scored["chosen_logps"] - scored["rejected_logps"]
    with np.errstate(invalid="ignore"):  # skipped rows are NaN
        needed = np.logaddexp(0.0, BETA * margin)  # -ln sigmoid(-x) = ln(1 + e^x)
    tail = scored["rejected_logps"] / scored["rejected_length"]
    return scored.assign(reference_margin=margin, needed_loss=needed, rejected_tail=tail)
