"""Packing: many pairs in one row without padding, each prompt computed once for both of its completions.

A pair of prompt p, chosen c and rejected r becomes the tokens p c r without the last token of c and of r (nothing is
predicted from it). Positions of c and of r both go on from p. Attention runs pair by pair: p and c as one causal
sequence, r over p and itself, so no token ever sees its neighbours in the row, nor chosen the rejected.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "chesboard_packed"

# what some models add to the scores, beyond causal order, window and cap: a model that does is not packed
UNKNOWN = ("s_aux", "position_bias", "attention_bias", "alibi", "head_mask")

windows_seen: set[int] = set()  # sliding windows that attention layers really passed on since this was last cleared

Lengths = tuple[int, int, int]


@dataclass(frozen=True)
class Packed:
    """One row of N tokens. segments: (prompt, chosen, rejected) lengths as laid out, last tokens left off.

    source: (N,) index of each token in the flattened (2B, T) batch; positions: (N,) its position in its sequence.
    predicts: (M,) index into the N tokens of the position that predicts each completion token, in row order of the
    padded batch (all chosen, then all rejected).
    """

    source: Tensor
    positions: Tensor
    predicts: Tensor
    segments: tuple[Lengths, ...]


def pack(lengths: Sequence[Lengths], width: int, device: torch.device) -> Packed:
    """Lay out B pairs, given their (prompt, chosen, rejected) lengths and the width T of the right-padded batch."""
    source, positions, chosen_at, rejected_at, segments = [], [], [], [], []
    half, start = len(lengths), 0
    for i, (n, c, r) in enumerate(lengths):
        row, other = i * width, (half + i) * width
        source += [torch.arange(row, row + n + c - 1), torch.arange(other + n, other + n + r - 1)]
        positions += [torch.arange(n + c - 1), torch.arange(n, n + r - 1)]
        last = start + n - 1  # the prompt's last token predicts the first token of both completions
        chosen_at.append(torch.arange(last, last + c))
        rejected_at += [torch.tensor([last]), torch.arange(last + c, last + c + r - 1)]
        segments.append((n, c - 1, r - 1))
        start += n + c + r - 2
    predicts = torch.cat([*chosen_at, *rejected_at]).to(device)
    return Packed(torch.cat(source).to(device), torch.cat(positions).to(device), predicts, tuple(segments))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    segments: tuple[Lengths, ...],
    sliding_window: int | None = None,
    softcap: float | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row, pair by pair. query (1, H, N, d), key and value (1, G, N, d), G divides H."""
    if any(other.get(name) is not None for name in UNKNOWN):
        raise ValueError("this attention adds to its scores")
    if sliding_window:
        windows_seen.add(sliding_window)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out, start = [], 0
    for n, c, r in segments:
        first, end = start + n + c, start + n + c + r
        own = slice(start, first)
        out.append(_attend(query[:, :, own], key[:, :, own], value[:, :, own], 0, scaling, sliding_window, softcap))
        if r:
            k = torch.cat([key[:, :, start : start + n], key[:, :, first:end]], 2)
            v = torch.cat([value[:, :, start : start + n], value[:, :, first:end]], 2)
            out.append(_attend(query[:, :, first:end], k, v, n, scaling, sliding_window, softcap))
        start = end
    return torch.cat(out, 2).transpose(1, 2).contiguous(), None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, before: int, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of queries that stand after `before` keys; optionally within a window, with capped scores."""
    length = k.shape[2]
    window = window or length
    if not softcap and window >= length and before == 0:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    rows = torch.arange(before, length, device=q.device)[:, None]
    columns = torch.arange(length, device=q.device)[None]
    seen = (columns <= rows) & (columns > rows - window)
    if not softcap:
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling)
    scores = torch.tanh(q @ k.transpose(-1, -2) * (scaling or q.shape[-1] ** -0.5) / softcap) * softcap
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1, dtype=torch.float32).to(v.dtype)
    return weights @ v


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Let a transformers model use `attention` while open."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(NAME, attention)
