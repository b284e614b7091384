"""Efficient exact optimization on rewards, over lists (EXO-rw). arXiv 2402.00856."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, lists, logratios, require_positive, rewarded

NEEDS = ("reference", "lists")
COLUMNS = ("chosen_score", "rejected_score")
PROVENANCE = "code"


def exo(pair: PairStats, *, beta: float = 0.5, beta_r: float = 0.5) -> ObjectiveOutput:
    """Fit the policy to the rewards of a prompt's list by the reverse KL, which seeks their mode. arXiv 2402.00856.

    losses = sum_i g_i * (log g_i - log t_i) over the K different answers of the row's prompt, with
    g = softmax(r), r_i = beta * (policy - reference log-prob of answer i, nats, summed over completion tokens), and
    t = softmax(score / beta_r); (B,), in nats, lower is better, 0 where g = t. Only the scores say which answer is
    better. Every row carries its list's loss, so a list of n rows weighs n in the mean; an answer in several rows is
    one item, with the score of the first. rewards = r of the row's chosen and rejected answer.
    beta is the paper's beta_pi. Defaults: 0.5 and 0.5, as in the authors' scripts for HH and TL;DR; TRL's paper index
    has beta 0.1 for pairs. Equals the authors' "exo-rw". Two answers with t = (1 - e, e) are the pairwise EXO.
    Bounded targets bound the margins; only differences count, so both likelihoods may fall.
    """
    require_positive(beta=beta, beta_r=beta_r)
    chosen, rejected = (beta * values for values in logratios(pair))
    items = lists(pair)
    scores = items.items(column(pair, "chosen_score"), column(pair, "rejected_score"))
    model = items.log_softmax(items.items(chosen, rejected))
    terms = model.exp() * (model - items.log_softmax(scores / beta_r))
    losses = items.totals(terms)
    return rewarded(losses, chosen, rejected)
