"""One forward pass over a batch of pairs: everything the measures need, for any causal LM of transformers.

The model's own forward is run whole, with one change: a hook on its output embedding (the head) hands it only
the positions that predict completion tokens. So the hidden states are the exact vectors that the head multiplies,
whatever the model does after the head (bias, scale, soft-cap) is in the logits, and (B, T, V) never exists.

The shift by one happens here and nowhere else: token t is predicted at position t - 1.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.batch import PreferenceBatch
from diagnostics.errors import UserError
from diagnostics.stats import PairStats, SequenceStats, wide

TILE = 1024  # rows of (N, V) handled at once where both models' distributions are needed


@dataclass(frozen=True)
class Outputs:
    """What a model says at the N positions that predict the completion tokens of a batch, in row order.

    hidden: (N, D) input of the head, in the model's dtype; logits: (N, V), or (0, V) if the head was not asked for.
    rows, columns: (N,) where each predicted token stands in the batch; targets: (N,) its id.
    """

    hidden: Tensor
    logits: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor


def unwrap(model: nn.Module) -> Any:
    """The model inside DistributedDataParallel and the like."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def head_of(model: nn.Module) -> nn.Module:
    """The module whose input is the last hidden state: the model's output embedding."""
    head = unwrap(model).get_output_embeddings()
    if head is None:
        name = type(unwrap(model)).__name__
        raise UserError(f"{name} has no output embedding. Use a causal language model (AutoModelForCausalLM).")
    return head


def run(model: nn.Module, batch: PreferenceBatch, *, head: bool = True) -> Outputs:
    """Run a causal LM over a batch; with head=False the head sees no row, and logits are (0, V)."""
    rows, columns = batch.completion_mask[:, 1:].nonzero(as_tuple=True)
    width = batch.input_ids.shape[1]
    with _select(head_of(model), rows * width + columns, head) as seen:
        output = model(**_inputs(model, batch))
    targets = batch.input_ids[rows, columns + 1]
    return Outputs(seen[0], output.logits.flatten(0, 1), rows, columns + 1, targets)


def sequence_stats(
    batch: PreferenceBatch, policy: Outputs, reference: Outputs | None = None, *, kl: bool = False
) -> SequenceStats:
    """SequenceStats of all 2B rows. With kl, the exact KL to the reference in both directions (no gradient)."""
    stats = SequenceStats(
        per_token_logps=_spread(batch, policy, _logps(policy)) if len(policy.logits) else _nan(batch, policy),
        completion_mask=batch.completion_mask,
        hidden_sum=_hidden_sum(batch, policy),
        last_hidden=_last_hidden(batch, policy),
        text_ids=torch.where(
            (batch.text_mask if batch.text_mask is not None else batch.completion_mask).bool(),
            batch.input_ids,
            -1,
        ),
    )
    if not kl or reference is None:
        return stats
    forward, reverse = _kl(policy.logits.detach(), reference.logits)
    return replace(
        stats,
        per_token_kl=_spread(batch, policy, forward),
        per_token_kl_reverse=_spread(batch, policy, reverse),
    )


def pair_stats(
    batch: PreferenceBatch,
    policy: Outputs,
    reference: Outputs | SequenceStats | None = None,
    *,
    kl: bool = True,
) -> PairStats:
    """PairStats of B pairs. reference: the reference's outputs, its stored stats (then no KL), or None."""
    live = reference if isinstance(reference, Outputs) else None
    chosen, rejected = split(sequence_stats(batch, policy, live, kl=kl))
    if reference is None:
        return PairStats(chosen, rejected)
    ref = sequence_stats(batch, reference) if isinstance(reference, Outputs) else reference
    return PairStats(chosen, rejected, *split(ref))


def split(stats: SequenceStats) -> tuple[SequenceStats, SequenceStats]:
    """The chosen half and the rejected half of a batch's rows."""
    half = len(stats.completion_mask) // 2
    values = {k: v for k, v in vars(stats).items() if v is not None}
    first = SequenceStats(**{k: v[:half] for k, v in values.items()})
    return first, SequenceStats(**{k: v[half:] for k, v in values.items()})


@contextmanager
def _select(head: nn.Module, index: Tensor, apply: bool) -> Iterator[list[Tensor]]:
    """While open, the head sees only rows `index` of its flattened input; they are also returned, unchanged."""
    seen: list[Tensor] = []

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0].flatten(0, 1)[index]
        seen.append(hidden)
        return (hidden[: len(hidden) if apply else 0].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield seen
    finally:
        handle.remove()


def _inputs(model: nn.Module, batch: PreferenceBatch) -> dict[str, Any]:
    """Keyword arguments of the model's forward; positions count from each row's first real token."""
    accepted = inspect.signature(_innermost(model).forward).parameters
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if "position_ids" in accepted:
        inputs["position_ids"] = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return inputs


def _innermost(model: nn.Module) -> Any:
    """The transformers model itself, under data-parallel and adapter wrappers."""
    inner = unwrap(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def _logps(out: Outputs) -> Tensor:
    """(N,) log-probabilities of the targets, in float32 at least."""
    logits = out.logits.to(torch.promote_types(out.logits.dtype, torch.float32))
    return logits.gather(-1, out.targets[:, None])[:, 0] - logits.logsumexp(-1)


def _kl(policy: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Exact KL(ref || policy) and KL(policy || ref) over the vocabulary, (N,) nats each; logits (N, V)."""
    wanted = torch.promote_types(policy.dtype, torch.float32)
    forward, reverse = [], []
    for p, r in zip(policy.split(TILE), reference.split(TILE), strict=True):
        p, r = p.to(wanted).log_softmax(-1), r.to(wanted).log_softmax(-1)
        # a token that a model rules out (log-prob -inf) adds nothing to the sum weighted by that model
        forward.append(torch.where(r.isneginf(), 0.0, r.exp() * (r - p)).sum(-1))
        reverse.append(torch.where(p.isneginf(), 0.0, p.exp() * (p - r)).sum(-1))
    return torch.cat(forward), torch.cat(reverse)


def _spread(batch: PreferenceBatch, out: Outputs, values: Tensor) -> Tensor:
    """(N,) values back to (2B, T), 0 where nothing is predicted."""
    full = values.new_zeros(batch.input_ids.shape)
    return full.index_put((out.rows, out.columns), values)


def _nan(batch: PreferenceBatch, out: Outputs) -> Tensor:
    return torch.full(batch.input_ids.shape, torch.nan, device=out.hidden.device)


def _hidden_sum(batch: PreferenceBatch, out: Outputs) -> Tensor:
    """(2B, D) sums in float64, so that half-precision models neither overflow nor lose the differences."""
    hidden = out.hidden.detach().to(wide(out.hidden.device))
    return hidden.new_zeros(len(batch.input_ids), hidden.shape[1]).index_add(0, out.rows, hidden)


def _last_hidden(batch: PreferenceBatch, out: Outputs) -> Tensor:
    """(2B, D) the hidden state that predicts the last completion token; NaN for a row without completion."""
    counts = out.rows.bincount(minlength=len(batch.input_ids))
    last = out.hidden.detach()[(counts.cumsum(0) - 1).clamp(min=0)].to(wide(out.hidden.device))
    return torch.where((counts > 0)[:, None], last, torch.nan)
