"""Weighted preference optimization: pairs the policy would not write count less. arXiv 2406.11827, Eq. 2."""

import torch
from torch import Tensor

from diagnostics.errors import UserError
from diagnostics.stats import PairStats, SequenceStats
from trainers.objectives import Objective, ObjectiveOutput, columns, hyperparameters, load, needs, part

NEEDS = ("reference", "collision")
PROVENANCE = "TRL"


def wpo(pair: PairStats, *, beta: float = 0.01, base: str = "dpo") -> ObjectiveOutput:
    """Any pairwise loss, weighted by how probable both answers are under the policy. arXiv 2406.11827, Eq. 2.

    losses = w(chosen) * w(rejected) * base(beta), with w(y) = exp(mean over completion tokens of
    [log p(y_t) - log sum over the vocabulary of p^2]), log-probs in nats: about 1 for an answer that the policy could
    have sampled, near 0 for one it would not write; (B,), lower is better. NaN where a completion has no token.
    Stop-gradient: the weights are constants.
    base: name of another objective, which gets beta and keeps its other defaults. It must take a beta and read
    nothing but log-probs and the reference: what wpo needs is fixed in NEEDS, whatever the base, so that no KL,
    column, list or whole batch is there for it. Where the base needs no reference, the reference is not looked at.
    rewards = those of the base.
    beta 0.01 is the paper's. Equals TRL's `use_weighting`. The authors' own code, and TRL before, cut the product of
    the two weights at 1; here, as in TRL now, it may be larger. It does not stop displacement, it weakens the pairs
    that are far from what the policy writes.
    """
    output = _base(base)(pair, beta=beta)
    with torch.no_grad():
        weights = torch.exp(_agreement(pair.chosen) + _agreement(pair.rejected))
    return output._replace(losses=weights * output.losses)


def _base(name: str) -> Objective:
    """The objective to weigh; one that cannot be weighed is refused."""
    objective = load(name)
    more = [*(set(needs(name)) - {"reference"}), *columns(name)]
    if name == "wpo" or more:
        reads = "is wpo itself" if name == "wpo" else f"reads more than log-probs ({', '.join(sorted(more))})"
        raise UserError(f"base is '{name}', which {reads}; it must be another objective of log-probs alone.")
    if "beta" not in hyperparameters(name):
        raise UserError(f"base is '{name}', which takes no beta; it must be an objective with one, such as dpo.")
    return objective


def _agreement(side: SequenceStats) -> Tensor:
    """(B,) mean over completion tokens of log p(token) - log sum p^2, in nats per token."""
    return side.masked_sum(side.per_token_logps - part(side, "per_token_collision")) / side.lengths
