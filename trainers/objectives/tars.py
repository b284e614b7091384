"""DPO on answers with perturbed tokens, against a noisy picture, with spectra held near. arXiv 2507.21584 (TARS)."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diagnostics.errors import UserError
from diagnostics.stats import PairStats, SequenceStats, wide
from trainers.objectives import ObjectiveOutput, logratio, logratios, reference_row, require_not_negative
from trainers.objectives.dpo import dpo

NEEDS = ("reference", "embeddings")
CLEAN = {
    "clean_chosen": "(m, y_w) without perturbed tokens, for its embeddings under the reference",
    "clean_rejected": "(m, y_l) without perturbed tokens, for its embeddings under the reference",
}
ROWS = {"noisy_chosen": "(m_noise, y_w): the chosen row, perturbed as it is there, with a noisy picture"} | CLEAN
PROVENANCE = "code"


def tars(pair: PairStats, *, beta: float = 0.1, spectral: float = 0.1, margin: float = 0.5) -> ObjectiveOutput:
    """DPO on perturbed rows, a margin over a noisy picture, and a spectral term. arXiv 2507.21584 (TARS).

    losses = s(h(m, y_w) - h(m, y_l)) + s(h(m, y_w) - h(m_noise, y_w)) + spectral * S, with s(z) = -log sigmoid(beta *
    z) and S = max(0, D(p, c) - D(p, r) + margin); (B,), lower is better. h is the log-ratio (policy - reference, nats,
    summed over completion tokens) of rows in which tokens that no picture tells about were replaced: chosen and
    rejected are these perturbed rows, noisy_chosen the first of them with a noisy picture, and a replaced token has no
    place in completion_mask. D is the mean squared difference of two rows' |FFT| along the tokens, of what the first
    layer reads (`embeddings`, prompt included): p of the perturbed chosen row under the policy, c and r of clean_chosen
    and clean_rejected under the reference. Rows of other lengths are filled with zeros to the longest of the three.
    The trainer gives embeddings to rows of text alone, those of the tokens without positions, where the reference is
    live; with spectral 0 none are read, which is how rows with pictures train. No row that it makes of data leaves a
    token of an answer out yet: replaced tokens belong into the prompt there.
    rewards = beta * h(m, y_w) and beta * h(m, y_l).
    Read in the authors' code, whose defaults these are (learning rate 5e-7, 5 % of the tokens replaced, noise at step
    500). There S is that of the first pair of a batch alone, at the batch's width; here each pair has its own. Their
    sixth row, the noisy picture with the rejected answer, enters no term and is not asked for. The paper's inner
    maximum is drawn at random there, by similarity of token and picture. It does not stop displacement.
    """
    require_not_negative(spectral=spectral, margin=margin)
    preference = dpo(pair, beta=beta)
    chosen, _ = logratios(pair)
    losses = preference.losses - logsigmoid(beta * (chosen - logratio(pair, "noisy_chosen")))
    if spectral:
        losses = losses + spectral * _alignment(pair, margin)
    return preference._replace(losses=losses)


def _alignment(pair: PairStats, margin: float) -> Tensor:
    """(B,) S: how much less than margin the perturbed row's spectrum is nearer to the clean chosen one's."""
    perturbed = _embeddings(pair.chosen)
    clean = [_embeddings(reference_row(pair, name)) for name in CLEAN]
    near = []
    for rows in zip(perturbed, *clean, strict=True):
        width = max(map(len, rows))
        own, chosen, rejected = (torch.fft.fft(each, n=width, dim=0).abs() for each in rows)
        near.append((own - chosen).square().mean() - (own - rejected).square().mean())
    return (torch.stack(near) + margin).relu()


def _embeddings(side: SequenceStats) -> list[Tensor]:
    """(S_i, D) of each row, without padding."""
    if side.embeddings is None:
        raise UserError(
            "this objective reads embeddings, which are measured of rows of text alone with a live reference: set "
            "spectral to 0 to leave them out."
        )
    values = side.embeddings.to(wide(side.embeddings.device))
    return [each[~each.isnan().any(-1)] for each in values]
