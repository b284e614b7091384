"""Length-normalized DPO. arXiv 2407.15229; in Tulu 3, arXiv 2411.15124."""

from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, logratios, require_positive

NEEDS = ("reference",)
PROVENANCE = "TRL"


def ln_dpo(pair: PairStats, *, beta: float = 5.0) -> ObjectiveOutput:
    """Widen the margin of log-ratios per token between chosen and rejected. arXiv 2407.15229, arXiv 2411.15124.

    losses = -log sigmoid(beta * (u / n_chosen - v / n_rejected)), u and v the summed log-ratios (policy - reference,
    nats), n the number of completion tokens, EOS included; (B,), lower is better, log 2 where policy = reference.
    NaN where a completion has no token. beta multiplies nats per token, so it is larger than in dpo: 5.0 is Tulu 3's
    (open-instruct `dpo_norm`); the best value of arXiv 2407.15229 was not found.
    rewards = beta * u and beta * v, with sums as TRL logs them and as in every other objective, so that rewards can be
    compared; the loss is in the margin of their means a token. Equals TRL's `sigmoid_norm` and open-instruct's
    `dpo_norm`. Like dpo it looks at a margin alone and does not stop displacement.
    """
    require_positive(beta=beta)
    chosen, rejected = logratios(pair)
    margins = chosen / pair.chosen.lengths - rejected / pair.rejected.lengths
    return ObjectiveOutput(-logsigmoid(beta * margins), (beta * chosen).detach(), (beta * rejected).detach())
