"""DenseDPO: a preference for each segment of two clips. arXiv 2506.03517."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.stats import PairStats, SequenceStats
from trainers.objectives import ObjectiveOutput, column, part, references, require_positive, rewarded, widened

NEEDS = ("reference", "residual", "segments")
LIKELIHOOD = "denoising"
COLUMNS = ("segment_labels",)
PROVENANCE = "paper"


def densedpo(pair: PairStats, *, beta: float = 500.0) -> ObjectiveOutput:
    """Diffusion-DPO with a preference of its own for every segment of two clips. arXiv 2506.03517, Eq. 7 (DenseDPO).

    losses = -log sigmoid(-beta * sum over segments f of l_f * (D0_f - D1_f)), D_f = e_policy - e_reference in segment
    f, e_f the mean of (output - target)^2 over the segment's numbers and the draws; (B,), lower is better, log 2 where
    policy = reference. 0 is the chosen clip, 1 the rejected one, l_f from the column segment_labels: +1 where the
    chosen clip is better in segment f, -1 where the rejected one is, 0 where neither (or where there is no such
    segment); a list of as many numbers as the longest clip has segments. rewards = -beta * sum of l_f * D0_f and
    -beta * sum of l_f * D1_f. With one segment it is diffusion_dpo with twice the beta: there is no 1/2 here.
    The authors' segments are 1 s long; their pairs are a real clip, noised to 0.65 to 0.8 twice and denoised. beta 500
    is theirs, with LoRA of rank 128, a batch of 256 and 1000 steps. Eq. 7 was read; no code, so that each segment's
    error is a mean, as elsewhere here, is ours.
    """
    require_positive(beta=beta)
    labels = column(pair, "segment_labels").view(len(pair.chosen.completion_mask), -1)
    sides = zip((pair.chosen, pair.rejected), references(pair), strict=True)
    chosen, rejected = (-beta * (labels * _moved(own, ref, labels.shape[1])).sum(-1) for own, ref in sides)
    return rewarded(-logsigmoid(chosen - rejected), chosen, rejected)


def _moved(own: SequenceStats, ref: SequenceStats, segments: int) -> Tensor:
    """(B, F) float64: D of each segment; 0 where a sample has no such segment."""
    inside = part(own, "segments")[:, None] == torch.arange(segments, device=own.completion_mask.device)[:, None]
    squares = (widened(part(side, "residual")).square().mean(1) for side in (own, ref))
    policy, reference = ((inside * values[:, None]).sum(-1) for values in squares)
    return (policy - reference) / inside.sum(-1).clamp(min=1)
