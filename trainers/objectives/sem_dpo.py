"""Sem-DPO: DPO weighted by how near the chosen answer is to the prompt in meaning. arXiv 2507.20133."""

import torch

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, require_not_negative
from trainers.objectives.dpo import dpo

NEEDS = ("reference",)
COLUMNS = ("semantic_distance",)
PROVENANCE = "secondary"


def sem_dpo(pair: PairStats, *, beta: float = 0.1, alpha: float = 1.0) -> ObjectiveOutput:
    """DPO that lets pairs count less whose chosen answer has drifted from the prompt. arXiv 2507.20133 (Sem-DPO).

    losses = exp(-alpha * distance) * dpo(beta); (B,), lower is better; rewards as in dpo. distance is the column
    `semantic_distance`: the cosine distance, 0 to 2, between a frozen embedder's vectors of the prompt and the chosen
    answer, computed beforehand (the method rewrites prompts: there x is the original prompt, y_w the rewritten one).
    The formula is secondary: it was read in a secondary source, not in the paper. alpha's value was not found (1 is a
    placeholder), nor beta's (0.1 is DPO's). alpha = 0 is dpo. The weights are data, without gradient.
    The loss of a pair still sees the margin of log-ratios only, so that both likelihoods can fall.
    """
    require_not_negative(alpha=alpha)
    preference = dpo(pair, beta=beta)
    weights = torch.exp(-alpha * column(pair, "semantic_distance"))
    return preference._replace(losses=weights * preference.losses)
