"""BRAIn: distilling the reward-conditioned posterior over lists of samples. arXiv 2402.02479."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, lists, logratios, rewarded

NEEDS = ("reference", "lists")
COLUMNS = ("chosen_score", "rejected_score", "chosen_proposal_logps", "rejected_proposal_logps")
PROVENANCE = "derivation"


def brain(pair: PairStats) -> ObjectiveOutput:
    """Fit the policy to the reference conditioned on goodness, over a prompt's list of samples. arXiv 2402.02479.

    losses = -sum_i a_i * log b_i over the K different answers of the row's prompt, with
    a = softmax(R_i + log p(good | i) - Q_i), b = softmax(P_i - Q_i), P, R and Q the log-probs (nats, summed over
    completion tokens) under policy, reference and the proposal that the answers were drawn from; (B,), lower is
    better. a is detached; the gradient is -sum_i (a_i - b_i) * grad P_i, b being the self-normalised baseline.
    p(good | i) = sigmoid(score of i), the score a Bradley-Terry reward model's. Only the scores say which answer is
    better. Every row carries its list's loss, so a list of n rows weighs n in the mean; an answer in several rows is
    one item, with the values of the first. rewards = log-ratios (policy - reference) of the row's two answers.
    This is our derivation from the paper's abstract (posterior by Bayes' rule, self-normalised importance sampling,
    self-normalised baseline); its formulas were not read, and p(good) = sigmoid(score) is ours: a Bradley-Terry
    score has no zero of its own, so the scores' level matters here. The paper's defaults were not found.
    With the reference as proposal and two answers of which one is far likelier to be good it is dpo with beta 1,
    that one chosen. Only differences count, so all likelihoods may fall.
    """
    chosen, rejected = logratios(pair)
    items = lists(pair)
    scores, proposals = (
        items.items(column(pair, f"chosen_{name}"), column(pair, f"rejected_{name}"))
        for name in ("score", "proposal_logps")
    )
    policy = items.items(pair.chosen.logps, pair.rejected.logps)
    reference = (policy - items.items(chosen, rejected)).detach()
    targets = items.log_softmax(reference + logsigmoid(scores) - proposals).exp()
    terms = -targets * items.log_softmax(policy - proposals)
    losses = items.totals(terms)
    return rewarded(losses, chosen, rejected)
