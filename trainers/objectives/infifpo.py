"""InfiFPO: the reference is replaced by a fusion of source models. arXiv 2505.13878."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput, column, require_positive, rewarded

NEEDS = ("reference",)
COLUMNS = ("chosen_source_logps", "rejected_source_logps")
PROVENANCE = "paper"


def infifpo(pair: PairStats, *, beta: float = 2.5) -> ObjectiveOutput:
    """DPO per token against the source model that differs most from the policy. arXiv 2505.13878 (InfiFPO).

    losses = -log sigmoid(beta * ((p_w - f_w) - (p_l - f_l))), p the policy's mean log-prob of completion tokens (nats
    per token, EOS included), f the fused source's; w is chosen, l rejected; (B,), lower is better.
    The columns `chosen_source_logps` and `rejected_source_logps`, (B,) or (B, S), hold the mean log-probs of S source
    models, each by its own tokenizer's length. f is that of one source, the one whose probability exp(mean) differs
    most from the policy's now, clipped by the initial policy, which is the reference: not below it for the chosen
    answer, not above it for the rejected one, so that a worse source teaches nothing.
    rewards = beta * (p_w - f_w) and beta * (p_l - f_l). NaN where a completion has no token. The choice of the source
    passes no gradient. beta 2.5 is the paper's, with learning rate 1e-7 and batches of 128 after an SFT stage.
    The authors' repository has no training code, and its script names a mean over sources and an offset to the
    reference, which are not explained. Whether the paper chooses before or after clipping was not clear: here before.
    The clip raises the chosen answer's and lowers the rejected one's standard, but the loss sees a difference only,
    so that both likelihoods can fall.
    """
    require_positive(beta=beta)
    if pair.ref_chosen is None or pair.ref_rejected is None:
        raise UserError("infifpo clips at the initial policy: set 'reference' to live or precomputed.")
    chosen, rejected = pair.chosen.avg_logps, pair.rejected.avg_logps
    fused_chosen = torch.maximum(_farthest(chosen, column(pair, "chosen_source_logps")), pair.ref_chosen.avg_logps)
    fused_rejected = torch.minimum(
        _farthest(rejected, column(pair, "rejected_source_logps")), pair.ref_rejected.avg_logps
    )
    chosen, rejected = beta * (chosen - fused_chosen.detach()), beta * (rejected - fused_rejected.detach())
    return rewarded(-logsigmoid(chosen - rejected), chosen, rejected)


def _farthest(policy: Tensor, sources: Tensor) -> Tensor:
    """(B,) mean log-prob by the source whose probability differs most from the policy's."""
    sources = sources if sources.ndim == 2 else sources[:, None]
    apart = (sources.exp() - policy.detach().exp()[:, None]).abs()
    return sources.gather(1, apart.argmax(1, keepdim=True))[:, 0]
