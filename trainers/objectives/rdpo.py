"""DPO plus a preference for the picture itself over one that was retrieved. arXiv 2502.13146 (Re-Align, rDPO)."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratio, logratios
from trainers.objectives.dpo import dpo

NEEDS = ("reference",)
ROWS = {"retrieved_chosen": "(m_r, y_w): a retrieved, similar picture with the chosen answer, which is of another one"}
PROVENANCE = "code"


def rdpo(pair: PairStats, *, beta: float = 0.1) -> ObjectiveOutput:
    """DPO plus the same answer's margin before its own and a retrieved picture. arXiv 2502.13146 (Re-Align, rDPO).

    losses = s(h(m, y_w) - h(m, y_l)) + s(h(m, y_w) - h(m_r, y_w)), with s(z) = -log sigmoid(beta * z); (B,), lower is
    better, 2 log 2 where policy = reference. h is the log-ratio (policy - reference, nats, summed over completion
    tokens), m the picture, m_r a retrieved one that is similar. Rows: chosen (m, y_w), rejected (m, y_l),
    retrieved_chosen (m_r, y_w). Where the retrieved picture is the picture it is dpo + log 2.
    rewards = beta * h(m, y_w) and beta * h(m, y_l).
    The published formula, which the authors' code has too, but for its log-probs: there the rejected and the retrieved
    row are scored with the model's own best token in place of the answer's, which is another loss; it is not built.
    beta 0.1 is theirs, with a learning rate of 1e-6. It does not stop displacement: both margins can grow while the
    chosen answer falls.
    """
    preference = dpo(pair, beta=beta)
    chosen, _ = logratios(pair)
    seen = -logsigmoid(beta * (chosen - logratio(pair, "retrieved_chosen")))
    return preference._replace(losses=preference.losses + seen)
