"""DPO in which the policy sees a long video and the reference its anchor clip alone. arXiv 2602.02341 (LongVPO)."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, reference_row, require_positive, rewarded

NEEDS = ("reference",)
ROWS = {
    "anchor_chosen": "(v_anchor, y_w): the chosen answer after the anchor clip alone, read under the reference",
    "anchor_rejected": "(v_anchor, y_l): the rejected answer after the anchor clip alone, read under the reference",
}
PROVENANCE = "formula not found"


def longvpo(pair: PairStats, *, beta: float = 0.1) -> ObjectiveOutput:
    """DPO whose reference sees the anchor clip alone, the policy the long video. arXiv 2602.02341 (LongVPO, stage 1).

    losses = -log sigmoid(beta * (u - v)), u = log policy(y_w | long video) - log reference(y_w | anchor clip) and v the
    same of y_l (nats, summed over completion tokens); (B,), lower is better. Rows: chosen and rejected hold the long
    video, anchor_chosen and anchor_rejected the same answers after the anchor clip. Where both inputs are the same it
    is dpo; elsewhere it is not log 2 at the start.
    rewards = beta * u and beta * v.
    Formula not found: a reconstruction from a description, for the paper's own was not readable and no code was found;
    beta is that of dpo. Stage 2 is plain dpo. The log's ref_* columns are of the long video, as all rows are run under
    both models. It does not stop displacement.
    """
    require_positive(beta=beta)
    chosen = pair.chosen.logps - reference_row(pair, "anchor_chosen").logps
    rejected = pair.rejected.logps - reference_row(pair, "anchor_rejected").logps
    return rewarded(-logsigmoid(beta * (chosen - rejected)), beta * chosen, beta * rejected)
