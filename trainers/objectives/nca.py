"""Noise-contrastive alignment: lists of answers with explicit rewards, each against noise. arXiv 2402.05369."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, lists, logratios, require_positive, rewarded

NEEDS = ("reference", "lists")
COLUMNS = ("chosen_score", "rejected_score")
PROVENANCE = "code"


def nca(pair: PairStats, *, beta: float = 0.01, temperature_alpha: float = 1e-4) -> ObjectiveOutput:
    """Raise well scored answers of a prompt's list and hold all of them down to the reference. arXiv 2402.05369.

    losses = -sum_i (a_i * log sigmoid(r_i) + log sigmoid(-r_i) / K) over the K different answers of the row's
    prompt, with a = softmax(score / temperature_alpha), r_i = beta * (policy - reference log-prob of answer i, nats,
    summed over completion tokens); (B,), lower is better, 2 log 2 where policy = reference. Only the scores say
    which answer is better. Every row carries its list's loss, so a list of n rows weighs n in the mean; an answer in
    several rows is one item, with the score of the first. rewards = r of the row's chosen and rejected answer.
    Published defaults: beta 0.01; temperature_alpha 1e-4 in the authors' code (almost all weight on the best answer),
    0.33 in the paper from memory. Their code adds 0.01 to the score of the first answer; not here.
    Each answer is judged alone, by its own level: the authors find that the chosen likelihood does not fall.
    """
    require_positive(beta=beta, temperature_alpha=temperature_alpha)
    chosen, rejected = (beta * values for values in logratios(pair))
    items = lists(pair)
    scores = items.items(column(pair, "chosen_score"), column(pair, "rejected_score"))
    rewards = items.items(chosen, rejected)
    targets = items.log_softmax(scores / temperature_alpha).exp()
    sizes = items.together().sum(-1)
    terms = -targets * logsigmoid(rewards) - logsigmoid(-rewards) / sizes
    losses = items.totals(terms)
    return rewarded(losses, chosen, rejected)
