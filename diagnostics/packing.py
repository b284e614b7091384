"""Packing: many sequences in one row without padding, each prompt computed once for all of its completions.

A prompt p with completions c, r, ... becomes the tokens p c r ... without the last token of each completion (nothing is
predicted from it); a completion that a batch holds twice stands there once. Positions of every completion go on from p.
Attention runs prompt by prompt: p and c as one causal sequence, r over p and itself, so no token ever sees its
neighbours in the row, nor chosen the rejected. On a GPU, which so many small calls would leave idle, all sequences p c
and p r of like length run side by side, padded in the attention alone; it then reads p once for each completion.

`pack_apart` lays pairs out as three rows, all p, all c and all r, for three passes of which the second and
third attend to the first's keys and values: then the chosen and the rejected answers share no node of the graph but
the prompts', and the gradient through either costs nothing for the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "chesboard_packed"

# what some models add to the scores, beyond causal order, window and cap: a model that does is not packed
UNKNOWN = ("s_aux", "position_bias", "attention_bias", "alibi", "head_mask")

LOOPS = ("cpu",)  # kinds of device on which attention runs prompt by prompt
SCORES_BYTES = 512 << 20  # attention's scores at once where no kernel keeps them to itself: with a soft-cap

windows_seen: set[int] = set()  # sliding windows that attention layers really passed on since this was last cleared

Lengths = tuple[int, ...]
Rows = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Packed:
    """One row of N tokens. segments: lengths as laid out, (prompt, completion, completion, ...), last tokens left off.

    source: (N,) index of each token in the flattened (R * B, T) batch; positions: (N,) its position in its sequence.
    predicts: (M,) index into the N tokens of the position that predicts each completion token, in row order of the
    padded batch.
    """

    source: Tensor
    positions: Tensor
    predicts: Tensor
    segments: tuple[Lengths, ...]


def pack(lengths: Rows, first: Rows, width: int, device: torch.device) -> Packed:
    """Lay out the rows of a right-padded batch of width T. lengths, first: of each row, see Batch."""
    asked: dict[int, list[int]] = {}  # rows that differ, by the first row with their prompt
    for row, (prompt, same) in enumerate(first):
        if row == same:
            asked.setdefault(prompt, []).append(row)
    source, positions, segments, start = [], [], [], 0
    predicts: dict[int, np.ndarray] = {}
    for rows in asked.values():
        n = lengths[rows[0]][0]
        source.append(np.arange(n) + rows[0] * width)
        positions.append(np.arange(n))
        last = start + n - 1  # the prompt's last token predicts the first token of every completion
        start += n
        for row in rows:
            c = lengths[row][1] - 1
            source.append(np.arange(n, n + c) + row * width)
            positions.append(np.arange(n, n + c))
            predicts[row] = np.append(last, np.arange(start, start + c))
            start += c
        segments.append((n, *(lengths[row][1] - 1 for row in rows)))
    parts = (source, positions, [predicts[same] for _, same in first])
    places, at, order = (torch.from_numpy(np.concatenate(part)).to(device) for part in parts)
    return Packed(places, at, order, tuple(segments))


@dataclass(frozen=True)
class Part:
    """One of the three rows of `pack_apart`: where its N tokens come from and stand, and what attends to what.

    segments: (before, length) of each pair: tokens of its prompt in the prompts' row (0 for that row itself), and its
    tokens here.
    pairs: (N,) the pair that each token belongs to.
    """

    source: Tensor
    positions: Tensor
    pairs: Tensor
    segments: tuple[Lengths, ...]

    @property
    def ends(self) -> Tensor:
        """(B,) index of each pair's last token."""
        return torch.tensor([n for _, n in self.segments], device=self.source.device).cumsum(0) - 1


def pack_apart(lengths: Rows, width: int, device: torch.device) -> tuple[Part, Part, Part]:
    """B pairs as prompts, chosen and rejected: the last token of each completion left off. lengths: of the 2B rows."""
    half = len(lengths) // 2
    starts = [n for n, _ in lengths[:half]]
    parts = (
        (0, [0] * half, starts),
        (0, starts, [c - 1 for _, c in lengths[:half]]),
        (half, starts, [c - 1 for _, c in lengths[half:]]),
    )
    found = []
    for offset, start, count in parts:
        spans = list(zip(start, count, strict=True))
        source = torch.cat([torch.arange(k) + (offset + i) * width + n for i, (n, k) in enumerate(spans)])
        positions = torch.cat([torch.arange(n, n + k) for n, k in spans])
        pairs = torch.arange(half).repeat_interleave(torch.tensor(count))
        segments = tuple((n, k) for n, k in spans)
        found.append(Part(source.to(device), positions.to(device), pairs.to(device), segments))
    return found[0], found[1], found[2]


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
    prompts: dict[nn.Module, tuple[Tensor, Tensor]] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row, prompt by prompt. query (1, H, N, d), key and value (1, G, N, d), G divides H.

    prompts: given for the rows of `pack_apart`: keys and values of the prompts, by module; the first row fills it.
    """
    if any(other.get(name) is not None for name in UNKNOWN):
        raise ValueError("this attention adds to its scores")
    if sliding_window:
        windows_seen.add(sliding_window)
    how, before = (scaling, sliding_window, softcap), None
    loops, groups = query.device.type in LOOPS, query.shape[1] // key.shape[1]
    if loops and groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if prompts is not None and any(n for n, *_ in segments):
        before = prompts[module]
    elif prompts is not None:
        prompts[module] = key, value
    if not loops:
        return _together(query, key, value, before, segments, *how), None
    if before is not None:
        out = _after(query, key, value, before, segments, *how)
    else:
        out = _in_turn(query, key, value, segments, *how)
    return out.transpose(1, 2).contiguous(), None


def _in_turn(query: Tensor, key: Tensor, value: Tensor, segments: tuple[Lengths, ...], *how: Any) -> Tensor:
    """Attention of a packed row, prompt by prompt."""
    out, start = [], 0
    for n, *rest in segments:
        first = start + n + (rest[0] if rest else 0)  # the prompt goes with its first completion
        own = slice(start, first)
        out.append(_attend(query[:, :, own], key[:, :, own], value[:, :, own], 0, *how))
        for c in rest[1:]:
            own = slice(first, first + c)
            if c:
                k, v = (torch.cat([x[:, :, start : start + n], x[:, :, own]], 2) for x in (key, value))
                out.append(_attend(query[:, :, own], k, v, n, *how))
            first += c
        start = first
    return torch.cat(out, 2)


def _after(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompts: tuple[Tensor, Tensor],
    segments: tuple[Lengths, ...],
    *how: Any,
) -> Tensor:
    """Attention of completions over their prompts, which were another row, and themselves."""
    out, start, begin = [], 0, 0
    for n, c in segments:
        own, before = slice(start, start + c), slice(begin, begin + n)
        if c:
            k, v = (
                torch.cat([old[:, :, before], new[:, :, own]], 2)
                for old, new in zip(prompts, (key, value), strict=True)
            )
            out.append(_attend(query[:, :, own], k, v, n, *how))
        start, begin = start + c, begin + n
    return torch.cat(out, 2)


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


def _together(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    before: tuple[Tensor, Tensor] | None,
    segments: tuple[Lengths, ...],
    *how: Any,
) -> Tensor:
    """Attention of a packed row in few calls, whatever the number of sequences, (1, N, H, d). before: keys and values
    of the prompts where they were another row."""
    groups, softcap = query.shape[1] // key.shape[1], how[-1]
    if before is not None:
        key, value = (torch.cat([old, new], 2) for old, new in zip(before, (key, value), strict=True))
        unread = query.new_zeros(*query.shape[:2], before[0].shape[2], query.shape[3])  # they have had their turn
        query = torch.cat([unread, query], 2)
    tokens = [x[0].transpose(0, 1) for x in (query, key, value)]  # (N, heads, d)
    plan = side_by_side(segments, before is not None, query.device)
    out = []
    for whole in plan.takes:
        most = SCORES_BYTES // (4 * query.shape[1] * whole.shape[1] ** 2) if softcap else len(whole)
        for take in whole.split(max(1, most)):
            q, k, v = (x.index_select(0, take.flatten()).unflatten(0, take.shape).transpose(1, 2) for x in tokens)
            if groups > 1:
                k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            out.append(_attend(q, k, v, 0, *how).transpose(1, 2).flatten(0, 1))
    return torch.cat(out).index_select(0, plan.back)[None]


@dataclass(frozen=True)
class SideBySide:
    """The sequences of a packed row, those of like length together.

    takes: (S, L) each: where the tokens of S sequences stand in the row, the last repeated up to the longest's L.
    back: (N,) where each token of the row stands in the sequences laid end to end.
    """

    takes: tuple[Tensor, ...]
    back: Tensor


@lru_cache(maxsize=4)  # every layer of a pass asks for the same
def side_by_side(segments: tuple[Lengths, ...], after: bool, device: torch.device) -> SideBySide:
    """Every prompt with each of its completions as a sequence of its own. after: the row is all prompts first, whose
    tokens are not asked back, then one completion each (see Part); else as in Packed."""
    sequences, start = [], 0
    total = sum(n for n, *_ in segments)
    own = total if after else 0
    for n, *rest in segments:
        prompt = np.arange(start, start + n)
        own += 0 if after else n
        for c in rest or [0]:
            sequences.append(np.concatenate([prompt, np.arange(own, own + c)]))
            own += c
        start = start + n if after else own
    sequences = sorted(filter(len, sequences), key=len, reverse=True)
    takes, back, done = [], np.zeros(own, dtype=np.int64), 0
    while sequences:
        longest = len(sequences[0])
        size = sum(2 * len(s) > longest for s in sequences)
        take = np.empty((size, longest), dtype=np.int64)
        for row, tokens in zip(take, sequences, strict=False):
            row[: len(tokens)], row[len(tokens) :] = tokens, tokens[-1]
            back[tokens] = np.arange(done, done + len(tokens))
            done += longest
        takes.append(take)
        sequences = sequences[size:]
    with torch.inference_mode(False):  # they are kept, for passes with a gradient too
        found = [torch.from_numpy(x).to(device) for x in (*takes, back[total if after else 0 :])]
    return SideBySide(tuple(found[:-1]), found[-1])


AttentionInterface.register(NAME, attention)
