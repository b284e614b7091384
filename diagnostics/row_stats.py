"""From a forward pass to the stats of each row of a batch."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diagnostics.batch import Batch
from diagnostics.forward import Outputs
from diagnostics.logits import compare, logps, top_tokens, with_kl
from diagnostics.stats import PairStats, SequenceStats, wide


def sequence_stats(batch: Batch, out: Outputs, values: Tensor | None = None) -> SequenceStats:
    """SequenceStats of all R * B rows. values: (N,) log-probs of the targets where they were taken already."""
    text = batch.text_mask if batch.text_mask is not None else batch.completion_mask
    if values is None and out.scored:
        values = logps(out)
    return SequenceStats(
        per_token_logps=_spread(batch, out, values) if values is not None else _nan(batch, out),
        completion_mask=batch.completion_mask,
        hidden_sum=_hidden_sum(batch, out),
        last_hidden=_last_hidden(batch, out),
        text_ids=torch.where(text.bool(), batch.input_ids, -1),
    )


def pair_stats(
    batch: Batch, policy: Outputs, reference: Outputs | SequenceStats | None = None, **how: Any
) -> PairStats:
    """PairStats of B pairs; see row_stats."""
    return PairStats.of(*row_stats(batch, policy, reference, **how))


def row_stats(
    batch: Batch,
    policy: Outputs,
    reference: Outputs | SequenceStats | None = None,
    *,
    kl: bool = True,
    kl_gradient: bool = False,
) -> tuple[dict[str, SequenceStats], dict[str, SequenceStats]]:
    """The stats of every row under the policy and under the reference, by name. reference: the reference's outputs,
    its stored stats (then no KL), or None (then the second is empty).

    With kl and the reference's outputs, the exact KL in both directions is taken too; with kl_gradient,
    KL(ref || policy) has a gradient in the policy.
    """
    if (kl or kl_gradient) and isinstance(reference, Outputs):
        values, ref_values, forward, reverse = (with_kl if kl_gradient else compare)(policy, reference)
        kls = {
            "per_token_kl": _spread(batch, policy, forward),
            "per_token_kl_reverse": _spread(batch, policy, reverse),
        }
        own, ref = replace(sequence_stats(batch, policy, values), **kls), sequence_stats(batch, reference, ref_values)
    else:
        own, ref = sequence_stats(batch, policy), reference
        ref = sequence_stats(batch, ref) if isinstance(ref, Outputs) else ref
    return by_name(batch, own), by_name(batch, ref) if ref is not None else {}


def by_name(batch: Batch, stats: SequenceStats) -> dict[str, SequenceStats]:
    """The rows of each name apart: B rows each."""
    values = {k: v for k, v in vars(stats).items() if v is not None}
    return {name: SequenceStats(**{k: v[at] for k, v in values.items()}) for name, at in batch.rows.items()}


def with_top_tokens(batch: Batch, out: Outputs, stats: PairStats) -> PairStats:
    """The same stats with H_k and M_k of every predicted token of the policy, on both sides."""
    entropy, mass = (spread(batch, out, values) for values in top_tokens(out))
    chosen, rejected = (
        replace(side, per_token_top_entropy=h, per_token_top_mass=m)
        for side, h, m in zip((stats.chosen, stats.rejected), entropy, mass, strict=True)
    )
    return replace(stats, chosen=chosen, rejected=rejected)


def spread(batch: Batch, out: Outputs, values: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) values of the predicted tokens as (B, T) of chosen and (B, T) of rejected, 0 elsewhere."""
    both, rows = _spread(batch, out, values), batch.rows
    return both[rows["chosen"]], both[rows["rejected"]]


def _spread(batch: Batch, out: Outputs, values: Tensor) -> Tensor:
    """(N,) values back to (R * B, T), 0 where nothing is predicted."""
    full = values.new_zeros(batch.input_ids.shape)
    return full.index_put((out.rows, out.columns), values)


def _nan(batch: Batch, out: Outputs) -> Tensor:
    return torch.full(batch.input_ids.shape, torch.nan, device=out.hidden.device)


def _hidden_sum(batch: Batch, out: Outputs) -> Tensor:
    """(R * B, D) sums in float64, so that half-precision models neither overflow nor lose the differences."""
    hidden = out.hidden.detach().to(wide(out.hidden.device))
    return hidden.new_zeros(len(batch.input_ids), hidden.shape[1]).index_add(0, out.rows, hidden)


def _last_hidden(batch: Batch, out: Outputs) -> Tensor:
    """(R * B, D) the hidden state that predicts the last completion token; NaN for a row without completion."""
    counts = out.rows.bincount(minlength=len(batch.input_ids))
    last = out.hidden.detach()[(counts.cumsum(0) - 1).clamp(min=0)].to(wide(out.hidden.device))
    return torch.where((counts > 0)[:, None], last, torch.nan)
