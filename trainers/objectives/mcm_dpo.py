"""One preference for the right context, picture and answer over seven wrong ones. arXiv 2510.00647 (MCM-DPO)."""

import torch
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratio, logratios, require_positive, rewarded

NEEDS = ("reference",)
WEIGHTS = {  # r_k of the margins against the row with context, picture and answer all right
    "rejected": 1.0,
    "other_visual_chosen": 0.5,
    "other_context_chosen": 0.5,
    "other_context_rejected": 0.2,
    "other_visual_rejected": 0.2,
    "other_both_chosen": 0.2,
    "other_both_rejected": 0.2,
}
ROWS = {
    "other_visual_chosen": "(c_w, m_l, y_w): the chosen answer with a spoiled picture",
    "other_context_chosen": "(c_l, m_w, y_w): the chosen answer to another sample's question",
    "other_context_rejected": "(c_l, m_w, y_l): the rejected answer to another sample's question",
    "other_visual_rejected": "(c_w, m_l, y_l): the rejected answer with a spoiled picture",
    "other_both_chosen": "(c_l, m_l, y_w): the chosen answer to another sample's question, with a spoiled picture",
    "other_both_rejected": "(c_l, m_l, y_l): the rejected answer to another sample's question, with a spoiled picture",
}
PROVENANCE = "code"


def mcm_dpo(pair: PairStats, *, beta: float = 0.1) -> ObjectiveOutput:
    """DPO whose margin is a weighted mean over seven wrong contexts, pictures and answers. arXiv 2510.00647 (MCM-DPO).

    losses = -log sigmoid(beta * z), z = (sum over k of r_k * (h(c_w, m_w, y_w) - h(k))) / (sum of r_k); (B,), lower is
    better, log 2 where policy = reference. h(c, m, y) is the log-ratio (policy - reference, nats, summed over
    completion tokens) of answer y to question c before picture m. Rows k and weights r_k, which sum to 2.8: rejected
    (c_w, m_w, y_l) 1; other_visual_chosen (c_w, m_l, y_w) and other_context_chosen (c_l, m_w, y_w) 0.5;
    other_context_rejected (c_l, m_w, y_l), other_visual_rejected (c_w, m_l, y_l), other_both_chosen (c_l, m_l, y_w) and
    other_both_rejected (c_l, m_l, y_l) 0.2. Where all seven have one log-ratio it is dpo.
    rewards = beta * h(c_w, m_w, y_w) and beta * h(c_w, m_w, y_l).
    Read in the authors' code, whose defaults these are, with a learning rate of 5e-7. There c_l is the question of
    another sample, drawn at random, and m_l the picture after 700 of 1,000 steps of diffusion noise. There is one
    sigmoid, over the weighted margin. It does not stop displacement.
    """
    require_positive(beta=beta)
    chosen, rejected = logratios(pair)
    lost = {"rejected": rejected} | {name: logratio(pair, name) for name in ROWS}
    margins = torch.stack([weight * (chosen - lost[name]) for name, weight in WEIGHTS.items()])
    margin = margins.sum(0) / sum(WEIGHTS.values())
    return rewarded(-logsigmoid(beta * margin), beta * chosen, beta * rejected)
