"""One forward pass over a batch of pairs: everything the measures need, for any causal LM of transformers, and for
encoder-decoder models (encoder.py says what they are called with).

The model's own forward is run whole, with one change: a hook on its output embedding (the head) keeps the hidden
states that predict completion tokens and lets the head see none, or only those. They are the exact vectors that the
head multiplies; whatever the model does after the head (bias, scale, soft-cap) is in the logits; and (B, T, V) never
exists: log-probs and KL are taken tile by tile.

The shift by one happens here (and in packing.py's layout) and nowhere else: token t is predicted at position t - 1.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import encoder
from diagnostics.batch import Batch
from diagnostics.engine import (
    accepted,
    apply_head,
    encodes,
    engine_of,
    fresh_factors,
    head_of,
    innermost,
    packed_attention,
)
from diagnostics.packing import Part, pack, pack_apart
from diagnostics.vision.encode import Features, Seen, encode, inputs, positions, taken

TILE_BYTES = 31 << 20  # logits of one tile in float32; from 32 MiB on, each tile's memory is asked from the system anew
GPU_TILE_BYTES = 512 << 20  # the same on a GPU, which small products leave idle (a plain choice, not measured)


@dataclass(frozen=True)
class Outputs:
    """What a model says at the N positions that predict the completion tokens of a batch, in row order.

    hidden: (N, D) input of the head, in the model's dtype; rows, columns: (N,) where each predicted token stands in
    the padded batch; targets: (N,) its id. model: gives logits tile by tile. whole: (N, V) where the head had to be
    applied at once; None where it was not applied yet.
    """

    hidden: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    model: nn.Module
    whole: Tensor | None = None
    scored: bool = True

    def logits(self, index: Any = slice(None)) -> Tensor:
        """(len(index), V) logits at some of the N positions, in float32 at least."""
        logits = self.whole[index] if self.whole is not None else apply_head(self.model, self.hidden[index])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def part(self, index: Any) -> "Outputs":
        """Some of the N positions; the head is applied to them anew."""
        found = {name: getattr(self, name)[index] for name in ("hidden", "rows", "columns", "targets")}
        return replace(self, **found, whole=None)

    def tiles(self) -> list[slice]:
        """The N positions cut so that one tile of logits stays small."""
        vocabulary = int(getattr(innermost(self.model).config.get_text_config(), "vocab_size", 1 << 15))
        room = TILE_BYTES if self.hidden.device.type == "cpu" else GPU_TILE_BYTES
        step = max(16, room // (4 * vocabulary))
        return [slice(i, i + step) for i in range(0, len(self.hidden), step)]


@dataclass(frozen=True)
class Sides:
    """A forward pass in which chosen and rejected share no more of the graph than their prompts.

    out: all N positions in row order, its hidden states cut off from the graph. chosen, rejected: the same hidden
    states, each side's with its graph. pairs: for each pass of the body, the pair of every token in it (-1: padding);
    passes: which of them lead to chosen and which to rejected.
    """

    out: Outputs
    chosen: Tensor
    rejected: Tensor
    pairs: tuple[Tensor, ...]
    passes: tuple[tuple[int, ...], tuple[int, ...]]


def run(model: nn.Module, batch: Batch, *, head: bool = True) -> Outputs:
    """Run a model over a batch, in the way `prepare` chose for it. head=False: hidden states only."""
    return run_as(model, batch, head=head, packed=_packs(model, batch), tiled=engine_of(model).tiled)


def run_sides(model: nn.Module, batch: Batch) -> Sides:
    """Run a causal LM so that each side's gradient can be taken alone: the prompts once and both completions after
    them where the model allows it, else the two halves of the padded batch. The head is not applied yet."""
    if _packs(model, batch) and engine_of(model).apart and _one_prompt(batch):
        return run_apart(model, batch)
    names = ("input_ids", "attention_mask", "completion_mask")
    found, hidden, passes = [], [], []
    features = encode(model, batch.visual) if batch.visual is not None else None
    for name, rows in batch.rows.items():
        seen = batch.visual.of(range(rows.start, rows.stop)) if batch.visual is not None else None
        part = replace(batch, **{n: getattr(batch, n)[rows] for n in names}, names=(name,), lengths=None, visual=seen)
        hidden.append(run_as(model, part, head=False, packed=False, tiled=True, features=features).hidden)
        groups = _groups(model, part.attention_mask)
        passes.append(tuple(range(len(found), len(found) + len(groups))))
        for index, columns in groups:
            read = part.attention_mask[index][:, columns].bool()
            found.append(torch.where(read, index[:, None], -1).flatten())
    chosen, rejected = hidden
    return Sides(_cut(model, batch, chosen, rejected), chosen, rejected, tuple(found), (passes[0], passes[1]))


def decode(
    model: nn.Module, ids: Tensor, mask: Tensor, past: Any = None, seen: Seen | None = None
) -> tuple[Tensor, Any]:
    """(B, V) logits of the token after each row, and the cache that saves the next call the rows so far (or None).

    ids: (B, T) the tokens that past has not seen, ending at the last column; mask: (B, all so far), 0 on padding, which
    stands on the left. For a model that keeps no such cache, past is None and ids are all tokens, without padding.
    seen: what the rows are shown.
    """
    if encodes(model):
        return _decode_encoded(model, ids, mask, past)
    height, width = ids.shape
    last = torch.arange(height, device=ids.device) * width + width - 1
    counted = (mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": counted}
    if seen is not None:
        given |= seen.inputs(model, ids, mask, counted, first=past is None)
    cache = {"past_key_values": past, "use_cache": True} if caches(model) else {}
    with _select(head_of(model), last, True), fresh_factors(model):
        output = model(**(accepted(model, given) | cache))
    return output.logits.flatten(0, 1), output.past_key_values if cache else None


def _decode_encoded(model: nn.Module, ids: Tensor, mask: Tensor, past: Any) -> tuple[Tensor, Any]:
    """`decode` of an encoder-decoder model; past: what the encoder made of the prompts, and the decoder's cache."""
    kept, cache = past or (None, None)
    given, kept = encoder.decode(model, ids, mask, kept)
    output = model(**(accepted(model, given) | {"past_key_values": cache, "use_cache": True}))
    return output.logits[:, -1], (kept, output.past_key_values)


def caches(model: nn.Module) -> bool:
    """Whether a model's forward takes back the keys and values of what it has read."""
    return "past_key_values" in inspect.signature(innermost(model).forward).parameters


def _packs(model: nn.Module, batch: Batch) -> bool:
    """Whether this batch's rows are packed."""
    engine = engine_of(model)
    if batch.visual is not None and not engine.shown:
        return False
    width = batch.input_ids.shape[1]
    fits = (engine.longest is None or width <= engine.longest) and not engine.regime(width)
    return engine.packed and batch.lengths is not None and fits


def _one_prompt(batch: Batch) -> bool:
    """Whether the rows of an example have one prompt, and are shown the same."""
    asked = [prompt for prompt, _ in batch.first]
    count = len(batch.pair_ids)
    return all(asked[i] == asked[i % count] for i in range(len(asked)))


def run_apart(model: nn.Module, batch: Batch) -> Sides:
    """Three passes: all prompts, all chosen after them, all rejected after them."""
    parts = pack_apart(batch.lengths or (), batch.input_ids.shape[1], batch.input_ids.device)
    prompts: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    last = _run_part(model, batch, parts[0], parts[0].ends, prompts)
    sides = []
    for part in parts[1:]:
        rest = last[:0]
        if len(part.source):
            rest = _run_part(model, batch, part, torch.arange(len(part.source), device=last.device), prompts)
        # the prompt's last token predicts the first token of the completion
        order = torch.cat([torch.arange(len(last), device=last.device), part.pairs]).argsort(stable=True)
        sides.append(torch.cat([last, rest])[order])
    chosen, rejected = sides
    found = tuple(part.pairs for part in parts if len(part.source))
    own = [len(part.source) > 0 for part in parts[1:]]
    passes = ((0, 1) if own[0] else (0,), (0, len(found) - 1) if own[1] else (0,))
    return Sides(_cut(model, batch, chosen, rejected), chosen, rejected, found, passes)


def _run_part(
    model: nn.Module,
    batch: Batch,
    part: Part,
    index: Tensor,
    prompts: dict[nn.Module, tuple[Tensor, Tensor]],
) -> Tensor:
    """(len(index), D) hidden states of one row."""
    given = _packed(model, batch, part.source, part.positions)
    if batch.visual is not None and not prompts:  # the first of the rows, which holds the prompts
        seen = batch.visual.of(range(len(batch.pair_ids)))
        given |= taken(model, seen, encode(model, seen))
    return read_at(model, given | {"segments": part.segments, "prompts": prompts}, index, packed=True)[0]


def _packed(model: nn.Module, batch: Batch, source: Tensor, counted: Tensor) -> dict[str, Any]:
    """Ids and positions of tokens behind each other in one row. source: (N,) index in the flattened batch; counted:
    (N,) positions that count tokens."""
    placed = None
    if batch.visual is not None:
        placed = positions(model, batch.input_ids, batch.attention_mask, batch.visual)
    at = counted[None] if placed is None else placed.flatten(1)[:, None, source]
    return {"input_ids": batch.input_ids.flatten()[source][None], "position_ids": at}


def _cut(model: nn.Module, batch: Batch, chosen: Tensor, rejected: Tensor) -> Outputs:
    """Both sides' hidden states in row order, without their graph."""
    rows, columns = batch.completion_mask[:, 1:].nonzero(as_tuple=True)
    hidden = torch.cat([chosen.detach(), rejected.detach()])
    return Outputs(hidden, rows, columns + 1, batch.input_ids[rows, columns + 1], model)


def run_as(
    model: nn.Module, batch: Batch, *, head: bool, packed: bool, tiled: bool, features: Features | None = None
) -> Outputs:
    """One pass in a given way. head: apply the head, here unless tiled; packed: rows behind each other, no padding.
    features: of what the rows are shown, where they were encoded already."""
    if batch.visual is not None and features is None:
        features = encode(model, batch.visual)
    rows, columns = batch.completion_mask[:, 1:].nonzero(as_tuple=True)
    at_once = head and not tiled
    if packed:
        layout = pack(batch.lengths or (), batch.first, batch.input_ids.shape[1], batch.input_ids.device)
        given = _packed(model, batch, layout.source, layout.positions) | {"segments": layout.segments}
        if batch.visual is not None and features is not None:  # a prompt stands where the first row with it does
            asked = [i for i, (prompt, _) in enumerate(batch.first) if prompt == i]
            given |= taken(model, batch.visual.of(asked), features)
        hidden, whole = read_at(model, given, layout.predicts, packed=True, logits=at_once)
    else:
        hidden, whole = _run_padded(model, batch, rows, columns, at_once, features)
    return Outputs(hidden, rows, columns + 1, batch.input_ids[rows, columns + 1], model, whole, head)


def _run_padded(
    model: nn.Module, batch: Batch, rows: Tensor, columns: Tensor, logits: bool, features: Features | None
) -> tuple[Tensor, Tensor | None]:
    """Hidden states (N, D) and logits (N, V) or None at places of the batch, in a pass for each regime of lengths."""
    if encodes(model):
        return read_at(model, encoder.inputs(model, batch), encoder.places(batch, rows, columns + 1), logits=logits)
    found, places = [], []
    for index, part in _groups(model, batch.attention_mask):
        ids, mask = batch.input_ids[index][:, part], batch.attention_mask[index][:, part]
        here = torch.isin(rows, index).nonzero()[:, 0]
        at = torch.searchsorted(index, rows[here]) * ids.shape[1] + columns[here] - (part.start or 0)
        given = _padded(ids, mask)
        if batch.visual is not None and features is not None:
            given |= inputs(model, ids, mask, batch.visual.of(index.tolist()), features)
        found.append(read_at(model, given, at, logits=logits))
        places.append(here)
    if len(found) == 1:
        return found[0]
    order = torch.cat(places).argsort()
    hidden, whole = torch.cat([h for h, _ in found]), [w for _, w in found if w is not None]
    return hidden[order], torch.cat(whole)[order] if whole else None


def _groups(model: nn.Module, mask: Tensor) -> list[tuple[Tensor, slice]]:
    """Rows of a padded batch that can be run together, each group with the columns that it needs."""
    engine, lengths = engine_of(model), mask.sum(-1).tolist()
    if not engine.regime(max(lengths)):
        return [(torch.arange(len(lengths), device=mask.device), slice(None))]
    regimes: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        regimes.setdefault(engine.regime(length), []).append(i)
    found = []
    for rows in regimes.values():
        longest = max(lengths[i] for i in rows)
        part = slice(longest) if bool(mask[:, 0].all()) else slice(mask.shape[1] - longest, None)
        found.append((torch.tensor(rows, device=mask.device), part))
    return found


def read_at(
    model: nn.Module, given: dict[str, Any], index: Tensor, *, packed: bool = False, logits: bool = False
) -> tuple[Tensor, Tensor | None]:
    """What the head reads at places `index` of its flattened input, and what it makes of it if logits are wanted."""
    how = packed_attention(model) if packed else nullcontext()
    with _select(head_of(model), index, logits) as seen, how, fresh_factors(model):
        output = model(**accepted(model, given))
    return seen[0], output.logits.flatten(0, 1) if logits else None


@contextmanager
def _select(head: nn.Module, index: Tensor, apply: bool) -> Iterator[list[Tensor]]:
    """While open, the head sees only rows `index` of its flattened input, or none; they are kept, unchanged."""
    seen: list[Tensor] = []

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0].flatten(0, 1)[index.to(args[0].device)].to(index.device)  # device_map: layers may be elsewhere
        seen.append(hidden)
        return (hidden[: len(hidden) if apply else 0].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield seen
    finally:
        handle.remove()


def _padded(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Padded rows; positions count from each row's first real token."""
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
