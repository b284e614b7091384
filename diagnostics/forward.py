"""One forward pass over a batch of pairs: everything the measures need, for any causal LM of transformers.

The model's own forward is run whole, with one change: a hook on its output embedding (the head) keeps the hidden
states that predict completion tokens and lets the head see none, or only those. They are the exact vectors that the
head multiplies; whatever the model does after the head (bias, scale, soft-cap) is in the logits; and (B, T, V) never
exists: log-probs and KL are taken tile by tile.

The shift by one happens here (and in packing.py's layout) and nowhere else: token t is predicted at position t - 1.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diagnostics.batch import Batch, collate
from diagnostics.engine import (
    Engine,
    accepted,
    apply_head,
    close,
    device_of,
    engine_of,
    evaluating,
    fresh_factors,
    head_of,
    innermost,
    packable,
    packed_attention,
    remember,
    rotary_switch,
)
from diagnostics.errors import DataError
from diagnostics.packing import Part, pack, pack_apart, windows_seen
from diagnostics.sequences import pair_of
from diagnostics.stats import PairStats, SequenceStats, wide
from diagnostics.token_ids import TokenIds

TILE_BYTES = 31 << 20  # logits of one tile in float32; from 32 MiB on, each tile's memory is asked from the system anew
GPU_TILE_BYTES = 512 << 20  # the same on a GPU, which small products leave idle (a plain choice, not measured)
TOP = 10  # most likely tokens whose entropy and mass are taken
SERIES = 0.05  # differences of log-probs up to which the KL takes a series; there float32 keeps 5 digits without it
TOGETHER = 3e-8  # a KL below this share of a common move, squared, is taken in float64
NEAR = 1e-4  # nats: a smaller KL needs the series where d is small
BLOCK_BYTES = 1 << 20  # logits that one softmax works through on a CPU: they stay in the cache of one core


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
    """Run a causal LM over a batch, in the way `prepare` chose for it. head=False: hidden states only."""
    return _run(model, batch, head=head, packed=_packs(model, batch), tiled=engine_of(model).tiled)


def run_sides(model: nn.Module, batch: Batch) -> Sides:
    """Run a causal LM so that each side's gradient can be taken alone: the prompts once and both completions after
    them where the model allows it, else the two halves of the padded batch. The head is not applied yet."""
    if _packs(model, batch) and engine_of(model).apart:
        return _run_apart(model, batch)
    names = ("input_ids", "attention_mask", "completion_mask")
    found, hidden, passes = [], [], []
    for name, rows in batch.rows.items():
        part = replace(batch, **{n: getattr(batch, n)[rows] for n in names}, names=(name,), lengths=None)
        hidden.append(_run(model, part, head=False, packed=False, tiled=True).hidden)
        groups = _groups(model, part.attention_mask)
        passes.append(tuple(range(len(found), len(found) + len(groups))))
        for index, columns in groups:
            read = part.attention_mask[index][:, columns].bool()
            found.append(torch.where(read, index[:, None], -1).flatten())
    chosen, rejected = hidden
    return Sides(_cut(model, batch, chosen, rejected), chosen, rejected, tuple(found), (passes[0], passes[1]))


def decode(model: nn.Module, ids: Tensor, mask: Tensor, past: Any = None) -> tuple[Tensor, Any]:
    """(B, V) logits of the token after each row, and the cache that saves the next call the rows so far (or None).

    ids: (B, T) the tokens that past has not seen, ending at the last column; mask: (B, all so far), 0 on padding, which
    stands on the left. For a model that keeps no such cache, past is None and ids are all tokens, without padding.
    """
    height, width = ids.shape
    last = torch.arange(height, device=ids.device) * width + width - 1
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]}
    cache = {"past_key_values": past, "use_cache": True} if caches(model) else {}
    with _select(head_of(model), last, True), fresh_factors(model):
        output = model(**(accepted(model, inputs) | cache))
    return output.logits.flatten(0, 1), output.past_key_values if cache else None


def caches(model: nn.Module) -> bool:
    """Whether a model's forward takes back the keys and values of what it has read."""
    return "past_key_values" in inspect.signature(innermost(model).forward).parameters


def prepare(model: nn.Module) -> Engine:
    """Choose the fastest way that gives this model's plain results, by trying each on a small random batch.

    Nothing in the model is changed by it. Raises DataError for a model that is not causal.
    """
    inner = innermost(model)
    switch, growing = rotary_switch(inner)
    remember(model, Engine(switch=switch, growing=growing))
    if type(model).__name__ == "FullyShardedDataParallel":
        return engine_of(model)  # its weights are whole only inside its own forward
    batch = trial(inner)
    with torch.no_grad(), evaluating(model):
        check_causal(model)
        plain = remember(model, replace(engine_of(model), positions=_keeps_positions(model)))
        wanted = _run(model, batch, head=True, packed=False, tiled=False)
        # an adapter on the head must be on or off as it was when the model ran, so such a head is applied at once
        tiled = not hasattr(head_of(model), "lora_A") and _tries(model, batch, wanted, packed=False, tiled=True)
        configs = packable(inner) if plain.positions else ()
        remember(model, replace(plain, configs=configs))
        windows_seen.clear()
        packed = bool(configs) and _tries(model, batch, wanted, packed=True, tiled=tiled)
        apart = packed and _tries_apart(model, batch, wanted)
    found = replace(plain, packed=packed, tiled=tiled, longest=_longest(inner), apart=apart, configs=configs)
    return remember(model, found)


def check_causal(model: nn.Module) -> None:
    """DataError where a later token changes an earlier logit: then no answer has a log-prob. Likewise where one is NaN
    or inf."""
    rows = innermost(model).get_input_embeddings().weight.shape[0]
    ids = torch.arange(2 * 12, device=device_of(model)).view(2, 12) % rows
    ids[1, :6] = ids[0, :6]
    seen, _ = _forward(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.arange(24))
    one, other = seen[:6], seen[12:18]
    if not torch.isfinite(seen).all():
        raise DataError(
            f"{type(innermost(model)).__name__} gives logits that are not finite. Look for NaN or inf in its weights, "
            "or load it as float32."
        )
    if not close(one, other, one.dtype):
        raise DataError(
            f"{type(innermost(model)).__name__} is no causal language model: what it says of a token changes with the "
            "tokens behind it, so no answer has a log-prob. Choose a model that reads from left to right."
        )


def _keeps_positions(model: nn.Module) -> bool:
    """Whether positions that count from 0 are what the model counts itself."""
    ids = torch.arange(2, 11, device=device_of(model))[None] % innermost(model).get_input_embeddings().weight.shape[0]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    counted = {"position_ids": torch.arange(ids.shape[1], device=ids.device)[None]}
    try:
        own, given = (_forward(model, i, torch.arange(ids.shape[1]))[0] for i in (inputs, inputs | counted))
    except Exception:  # positions of another form
        return False
    return bool((own - given).float().norm() <= torch.finfo(own.dtype).eps ** 0.75 * own.float().norm())


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
    own, ref = row_stats(batch, policy, reference, **how)
    return PairStats(own["chosen"], own["rejected"], ref.get("chosen"), ref.get("rejected"))


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


def logps(out: Outputs, look: Callable[[Tensor, slice], None] | None = None) -> Tensor:
    """(N,) log-probabilities of the targets, in float32 at least; tiles are computed again in the backward pass.

    look: is shown every tile of logits, without gradient, also when a tile is computed again.
    """

    def one(hidden: Tensor, targets: Tensor, tile: slice) -> Tensor:
        logits = replace(out, hidden=hidden).logits() if out.whole is None else out.logits(tile)
        if look is not None:
            with torch.no_grad():
                look(logits.detach(), tile)
        return _target_logps(logits, targets)

    return torch.cat(_by_tile(out, one))


def compare(policy: Outputs, reference: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N,) each: log-probs of policy and reference, exact KL(ref || policy) and KL(policy || ref) over the vocabulary.

    Each tile of logits is made once for all of them. Only the policy's log-probs have a gradient.
    """
    found: dict[int, tuple[Tensor, ...]] = {}
    training = torch.is_grad_enabled()

    def look(logits: Tensor, tile: slice) -> None:
        if tile.start not in found:  # the backward pass computes tiles again; they are measured already
            other, targets = reference.logits(tile), reference.targets[tile]
            same, ref, forward, reverse = _compare(logits, other, targets)
            # both sides by one formula to the last bit: the policy's own log-probs come from log_softmax in training
            found[tile.start] = (same, _target_logps(other, targets) if training else ref, forward, reverse)

    values = None
    if training:
        values = logps(policy, look)
    else:
        for tile in policy.tiles():
            look(policy.logits(tile), tile)
    same, ref, forward, reverse = (torch.cat(parts) for parts in zip(*found.values(), strict=True))
    return same if values is None else values, ref, forward, reverse


def with_kl(policy: Outputs, reference: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`compare` with a gradient in KL(ref || policy) too; tiles are computed again in the backward pass."""

    def one(hidden: Tensor, targets: Tensor, tile: slice) -> tuple[Tensor, ...]:
        logits = replace(policy, hidden=hidden).logits() if policy.whole is None else policy.logits(tile)
        with torch.no_grad():
            other = reference.logits(tile)
            ref_sum, probs = other.logsumexp(-1), other.softmax(-1)
        own_sum = logits.logsumexp(-1)
        own, ref = (z.gather(-1, targets[:, None])[:, 0] - n for z, n in ((logits, own_sum), (other, ref_sum)))
        forward, reverse = divergences(logits, other, own_sum - ref_sum, probs)
        return own, ref, forward, reverse.detach()

    values, ref, forward, reverse = (torch.cat(parts) for parts in zip(*_by_tile(policy, one), strict=True))
    return values, ref, forward, reverse


def collisions(out: Outputs) -> Tensor:
    """(N,) nats: log of the sum over the vocabulary of squared probabilities. No gradient."""
    with torch.no_grad():
        return torch.cat([(2 * out.logits(t).log_softmax(-1)).logsumexp(-1) for t in out.tiles()])


def top_tokens(out: Outputs, k: int = TOP) -> tuple[Tensor, Tensor]:
    """(N,) each: entropy H_k (nats) and mass M_k of the k most likely tokens where a token is predicted. No gradient.

    H_k = - sum_{i <= k} p_i log p_i and M_k = sum_{i <= k} p_i, with the model's own p_i: they are not made to add up
    to 1. With k or fewer tokens in the vocabulary that is the whole entropy, and M_k = 1.
    Source: arXiv 2410.11677 (entropy and mass over the top k as signs of over-optimisation; k = 10 is our choice).
    """
    with torch.no_grad():
        parts = [_top_tokens(out.logits(tile), k) for tile in out.tiles()]
    entropy, mass = (torch.cat(part) for part in zip(*parts, strict=True))
    return entropy, mass


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


def _by_tile(out: Outputs, one: Callable[..., Any]) -> list[Any]:
    """one(hidden, targets, tile) of every tile; computed again in the backward pass where that saves memory."""
    parts = [(out.hidden[t], out.targets[t], t) for t in out.tiles()]
    if out.whole is not None or len(parts) < 2 or not torch.is_grad_enabled():
        return [one(*part) for part in parts]
    return [checkpoint(one, *part, use_reentrant=False) for part in parts]


def _packs(model: nn.Module, batch: Batch) -> bool:
    """Whether this batch's rows are packed."""
    engine = engine_of(model)
    width = batch.input_ids.shape[1]
    fits = (engine.longest is None or width <= engine.longest) and not engine.regime(width)
    return engine.packed and batch.lengths is not None and fits


def _run_apart(model: nn.Module, batch: Batch) -> Sides:
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
    inputs = {
        "input_ids": batch.input_ids.flatten()[part.source][None],
        "position_ids": part.positions[None],
        "segments": part.segments,
        "prompts": prompts,
    }
    return _forward(model, inputs, index, packed=True)[0]


def _cut(model: nn.Module, batch: Batch, chosen: Tensor, rejected: Tensor) -> Outputs:
    """Both sides' hidden states in row order, without their graph."""
    rows, columns = batch.completion_mask[:, 1:].nonzero(as_tuple=True)
    hidden = torch.cat([chosen.detach(), rejected.detach()])
    return Outputs(hidden, rows, columns + 1, batch.input_ids[rows, columns + 1], model)


def _tries_apart(model: nn.Module, batch: Batch, wanted: Outputs) -> bool:
    """Whether prompts may be run before their completions: the same hidden states."""
    try:
        return close(_run_apart(model, batch).out.hidden, wanted.hidden, wanted.hidden.dtype)
    except Exception:  # as in _tries
        return False


def _run(model: nn.Module, batch: Batch, *, head: bool, packed: bool, tiled: bool) -> Outputs:
    rows, columns = batch.completion_mask[:, 1:].nonzero(as_tuple=True)
    at_once = head and not tiled
    if packed:
        layout = pack(batch.lengths or (), batch.first, batch.input_ids.shape[1], batch.input_ids.device)
        inputs = {
            "input_ids": batch.input_ids.flatten()[layout.source][None],
            "position_ids": layout.positions[None],
            "segments": layout.segments,
        }
        hidden, whole = _forward(model, inputs, layout.predicts, packed=True, logits=at_once)
    else:
        hidden, whole = _run_padded(model, batch, rows, columns, at_once)
    return Outputs(hidden, rows, columns + 1, batch.input_ids[rows, columns + 1], model, whole, head)


def _run_padded(
    model: nn.Module, batch: Batch, rows: Tensor, columns: Tensor, logits: bool
) -> tuple[Tensor, Tensor | None]:
    """Hidden states (N, D) and logits (N, V) or None at places of the batch, in a pass for each regime of lengths."""
    found, places = [], []
    for index, part in _groups(model, batch.attention_mask):
        ids, mask = batch.input_ids[index][:, part], batch.attention_mask[index][:, part]
        here = torch.isin(rows, index).nonzero()[:, 0]
        at = torch.searchsorted(index, rows[here]) * ids.shape[1] + columns[here] - (part.start or 0)
        found.append(_forward(model, _padded(ids, mask), at, logits=logits))
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


def _forward(
    model: nn.Module, inputs: dict[str, Any], index: Tensor, *, packed: bool = False, logits: bool = False
) -> tuple[Tensor, Tensor | None]:
    """What the head reads at places `index` of its flattened input, and what it makes of it if logits are wanted."""
    how = packed_attention(model) if packed else nullcontext()
    with _select(head_of(model), index, logits) as seen, how, fresh_factors(model):
        output = model(**accepted(model, inputs))
    return seen[0], output.logits.flatten(0, 1) if logits else None


def _tries(model: nn.Module, batch: Batch, wanted: Outputs, *, packed: bool, tiled: bool) -> bool:
    """Whether this way runs at all and agrees with the plain way in hidden states and log-probs."""
    try:
        got = _run(model, batch, head=True, packed=packed, tiled=tiled)
        dtype = wanted.hidden.dtype
        return close(got.hidden, wanted.hidden, dtype) and close(logps(got), logps(wanted), dtype)
    except Exception:  # whatever a model does not support, the plain way does
        return False


def _longest(inner: Any) -> int | None:
    """A window or chunk in the config that no attention layer passed on in the trial."""
    config = inner.config.get_text_config()
    found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((x for x in found if x and x not in windows_seen), default=None)


def trial(inner: Any) -> Batch:
    """A small random batch with ragged lengths."""
    vocabulary = inner.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = [TokenIds(torch.randint(0, vocabulary, (n,), generator=generator).tolist()) for n in (5, 7, 4, 3, 1, 9)]
    pairs = [pair_of("a", 0, ids[0], ids[1], ids[2]), pair_of("b", 1, ids[3], ids[4], ids[5])]
    return collate(pairs, pad_token_id=0).to(device_of(inner))


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


def _target_logps(logits: Tensor, targets: Tensor) -> Tensor:
    if logits.requires_grad:
        return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    blocks = zip(logits.split(_block(logits)), targets.split(_block(logits)), strict=True)
    return torch.cat([b.log_softmax(-1).gather(-1, t[:, None])[:, 0] for b, t in blocks])


def _compare(policy: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """(N,) each, from logits (N, V): log-probs of both, KL(ref || policy) and KL(policy || ref), block by block."""
    size = _block(policy)
    blocks = zip(policy.split(size), reference.split(size), targets[:, None].split(size), strict=True)
    parts = [_compare_block(*block) for block in blocks]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _compare_block(policy: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    # the exponential inside softmax is by far the cheapest: the largest logit and its probability give the log-sum
    policy_sum = policy.amax(-1) - policy.softmax(-1).amax(-1).log()
    ref_probs = reference.softmax(-1)
    ref_sum = reference.amax(-1) - ref_probs.amax(-1).log()
    logps = policy.gather(-1, targets)[:, 0] - policy_sum, reference.gather(-1, targets)[:, 0] - ref_sum
    return *logps, *divergences(policy, reference, policy_sum - ref_sum, ref_probs)


def divergences(policy: Tensor, reference: Tensor, shift: Tensor, ref_probs: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) nats each: exact KL(ref || policy) and KL(policy || ref) of logits (N, V), precise also near 0.

    With d = log policy - log ref and ref's probabilities as weights, KL(ref || policy) is the sum of expm1(d) - d and
    KL(policy || ref) that of d * expm1(d) - (expm1(d) - d): terms that are never negative, where the textbook's
    differences of log-sums lose everything below 1e-6 in float32. shift: (N,) log-sum of the policy's logits less the
    reference's, as rounded; by how much probabilities then miss 1 is known from d and taken back.
    """
    d = (policy - reference).sub_(shift[:, None])
    missed, forward, reverse = _sums(d, partial(torch.linalg.vecdot, ref_probs))
    taken = missed**2 / 2
    forward, reverse = forward - taken, reverse - taken
    # rounding of the differences themselves counts where all logits moved together by far more than apart
    if bool((forward.isfinite() & reverse.isfinite() & (forward >= TOGETHER * shift**2)).all()):
        return forward.clamp(min=0), reverse.clamp(min=0)
    return _kl(policy, reference)


def _sums(d: Tensor, mean: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Means of expm1(d), of expm1(d) - d, and (without gradient) of d * expm1(d) - (expm1(d) - d)."""
    if bool(torch.stack(d.detach().aminmax()).abs().amax() < SERIES):
        rest = _series(d)
        grown = rest + d
        missed, forward = mean(grown), mean(rest)
    else:
        grown = d.expm1()
        missed = mean(grown)
        forward = missed - mean(d)
        if bool(forward.detach().amin() < NEAR):
            forward = mean(torch.where(d.abs() < SERIES, _series(d), grown - d))
    with torch.no_grad():
        return missed, forward, mean(d * grown) - forward


def _series(d: Tensor) -> Tensor:
    """expm1(d) - d for small d: d^2 / 2 + d^3 / 6 + ..., to a relative 1e-12."""
    found = d * (1 / 5040)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2):
        found.add_(factor).mul_(d)
    return found.mul_(d)


def _top_tokens(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    logps = logits.topk(min(k, logits.shape[-1]), -1).values - logits.logsumexp(-1, keepdim=True)
    probs = logps.exp()
    # a token that is ruled out (log-prob -inf) adds nothing
    return -torch.where(probs > 0, probs * logps, 0.0).sum(-1), probs.sum(-1)


def _kl(policy: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """KL(ref || policy) and KL(policy || ref) of logits (N, V) of which some are infinite, in float64, (N,) nats each.

    A token that a model rules out (log-prob -inf) adds nothing to the sum weighted by that model.
    """
    dtype = wide(policy.device)
    own, other = policy.to(dtype).log_softmax(-1), reference.to(dtype).log_softmax(-1)
    neither, never = own.isneginf() & other.isneginf(), other.isneginf()
    d = torch.where(neither, 0.0, own - other)
    forward = torch.where(never, own.exp(), other.exp() * (d.expm1() - d)).sum(-1)
    back = torch.where(own.isneginf(), other.exp(), own.exp() * ((-d).expm1() + d)).sum(-1)
    return forward.to(policy.dtype), back.to(policy.dtype)


def _block(logits: Tensor) -> int:
    """How many rows of logits to work through at once."""
    rows = BLOCK_BYTES // (logits.element_size() * logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    return max(1, rows)


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
