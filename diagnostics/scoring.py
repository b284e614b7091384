"""Scoring: every pair through one forward pass, batched by length, rows out by pair_id.

A batch that does not fit into memory is cut in halves and tried again; no number depends on it beyond rounding.
"""

import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from diagnostics import measures
from diagnostics.batch import Batch, collate
from diagnostics.engine import Engine, device_of, engine_of, evaluating, innermost
from diagnostics.errors import DataError
from diagnostics.forward import Outputs, pair_stats, row_stats, run
from diagnostics.processes import processes
from diagnostics.sequences import Example
from diagnostics.stats import PairStats, SequenceStats

T = TypeVar("T")

CPU_TOKENS = 8192  # tokens of one batch on a CPU: more is not faster
GPU_TOKENS = (2048, 65536)  # fewest and most tokens of one batch on a GPU: more than that is not faster
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")


@dataclass(frozen=True)
class Scored:
    """One batch after its forward pass: pairs in batch order, their stats, and the models' raw outputs."""

    pairs: Sequence[Example]
    batch: Batch
    stats: PairStats
    policy: Outputs
    reference: Outputs | SequenceStats | None


def score(
    model: nn.Module,
    pairs: Sequence[Example],
    *,
    pad_token_id: int,
    reference: Callable[[Batch], Outputs | SequenceStats] | None = None,
    head: bool = True,
    batch_tokens: int | None = None,
) -> Iterator[Scored]:
    """Score pairs without gradient, long ones first, at most batch_tokens tokens at once (see `batches`).

    reference: runs the reference model on a batch (then the exact KL is measured too).
    head: False skips the vocabulary head where only hidden states are wanted; log-probs are then NaN.
    batch_tokens: None finds a size that fits (see `token_budget`).
    """
    groups = batches(pairs, batch_tokens or token_budget(model, pairs), engine_of(model))
    yield from score_batches(model, groups, pad_token_id=pad_token_id, reference=reference, head=head)


def score_batches(
    model: nn.Module,
    groups: Iterable[Sequence[Example]],
    *,
    pad_token_id: int,
    reference: Callable[[Batch], Outputs | SequenceStats] | None = None,
    head: bool = True,
) -> Iterator[Scored]:
    """`score` with the batches as they are given; one that does not fit is halved, as are those after it."""
    device = device_of(model)

    def work(part: Sequence[Example]) -> Scored:
        batch = collate(part, pad_token_id=pad_token_id).to(device)
        with torch.no_grad():
            return Scored(part, batch, *_outputs(model, batch, reference, head))

    for _, scored in fitting(model, groups, work):
        with torch.no_grad():
            yield scored


def score_rows(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    pad_token_id: int,
    reference: Callable[[Batch], Outputs | SequenceStats] | None = None,
) -> Iterator[tuple[Sequence[Example], dict[str, SequenceStats], dict[str, SequenceStats]]]:
    """Score examples with rows of any names, one answer or many, without gradient, long ones first: each batch with the
    stats of its rows by name, under the model and under the reference. All examples have the same names."""
    device = device_of(model)

    def work(part: Sequence[Example]) -> tuple[dict[str, SequenceStats], dict[str, SequenceStats]]:
        batch = collate(part, pad_token_id=pad_token_id).to(device)
        with torch.no_grad():
            return row_stats(batch, run(model, batch), reference(batch) if reference else None)

    for part, found in fitting(model, batches(examples, token_budget(model, examples), engine_of(model)), work):
        yield part, *found


def fitting(
    model: nn.Module, groups: Iterable[Sequence[Example]], work: Callable[[Sequence[Example]], T]
) -> Iterator[tuple[Sequence[Example], T]]:
    """Each batch with what work makes of it, the model in eval mode; one that does not fit into memory is halved, as
    are those after it."""
    engine, limit = engine_of(model), sys.maxsize
    with evaluating(model):
        for group in groups:
            waiting = list(batches(group, limit, engine))
            while waiting:
                part = waiting.pop(0)
                found = _fitting(lambda part=part: work(part))
                if found is not None:
                    yield part, found
                    continue
                limit = min(limit, _half(part, engine))
                waiting = [smaller for w in (part, *waiting) for smaller in batches(w, limit, engine)]


def dealt(model: nn.Module, pairs: Sequence[Example], done: Collection[str], batch_tokens: int) -> list[list[Example]]:
    """This process's share of the batches, without the pairs that are done.

    The batches are the same however many processes there are and however often they were stopped, so the numbers are
    too; they are dealt out whole, in turn, so that every process has long and short ones.
    """
    every = batches(pairs, batch_tokens, engine_of(model))
    left = [found for g in every if (found := [p for p in g if p.pair_id not in done])]
    return left[processes().process_index :: processes().num_processes]


def batches(pairs: Sequence[Example], batch_tokens: int, engine: Engine | None = None) -> Iterator[list[Example]]:
    """Pairs of similar length together, the longest first, so that a batch too large shows at once.

    batch_tokens: most tokens of a batch, counted as the engine lays them out: packed, or padded to the longest side.
    """
    engine = engine or Engine()
    group: list[Example] = []
    used = 0
    for pair in sorted(pairs, key=lambda p: (-p.longest, p.pair_id)):
        if group and used + cost(pair, group[0].longest, engine) > batch_tokens:
            yield group
            group, used = [], 0
        group.append(pair)
        used += cost(pair, group[0].longest, engine)
    if group:
        yield group


def cost(pair: Example, longest: int, engine: Engine) -> int:
    """Tokens that a pair adds to a batch whose longest side has `longest` tokens."""
    if engine.packed and (engine.longest is None or longest <= engine.longest) and not engine.regime(longest):
        return len(pair.prompt_ids) + sum(len(row.completion_ids) - 1 for row in pair.rows.values())
    return len(pair.rows) * longest


def token_budget(model: nn.Module, pairs: Sequence[Example]) -> int:
    """Tokens of one batch: a constant on a CPU; on a GPU what fits into half of the memory that is free now.

    The estimate is a power of two, so that it is mostly the same at the next start. Where it is too high, batches
    are halved.
    """
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    if not devices or not pairs:
        return CPU_TOKENS
    fitting = min(_free_bytes(d) for d in devices) / 2 / _token_bytes(model, max(p.longest for p in pairs))
    low, high = GPU_TOKENS
    return min(high, max(low, 1 << int(math.log2(max(fitting, 1)))))


def rows(pairs: Sequence[Example | str], stats: PairStats, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One dictionary a pair: pair_id, log-probs, lengths and every measure (NaN where not measured)."""
    ids = [p if isinstance(p, str) else p.pair_id for p in pairs]
    columns = likelihoods(stats) | {name: measures.load(name)(stats) for name in names or measures.names()}
    values = {name: tensor.detach().double().tolist() for name, tensor in columns.items()}
    return [{"pair_id": pair_id} | {name: v[i] for name, v in values.items()} for i, pair_id in enumerate(ids)]


def likelihoods(stats: PairStats) -> dict[str, torch.Tensor]:
    """(B,) sums of log-probs in nats and lengths in tokens, both sides; NaN without a reference."""
    nan = torch.full_like(stats.chosen.logps, torch.nan)
    return {
        "chosen_logps": stats.chosen.logps,
        "rejected_logps": stats.rejected.logps,
        "ref_chosen_logps": stats.ref_chosen.logps if stats.ref_chosen else nan,
        "ref_rejected_logps": stats.ref_rejected.logps if stats.ref_rejected else nan,
        "chosen_length": stats.chosen.lengths,
        "rejected_length": stats.rejected.lengths,
    }


def _token_bytes(model: nn.Module, longest: int) -> int:
    """Most memory that one more token needs in a forward pass without gradient: a generous estimate.

    Hidden states and what a layer makes of them (about 16 vectors of the model's width and 4 of its feed-forward's),
    float64 copies of two hidden states for the sums, the scores of attention that is not fused, and the logits where
    the head cannot be applied in tiles.
    """
    config, engine = innermost(model).config.get_text_config(), engine_of(model)
    size = next(model.parameters()).element_size()
    hidden = int(getattr(config, "hidden_size", 4096))
    inner = getattr(config, "intermediate_size", None)
    inner = (inner if isinstance(inner, int) else 4 * hidden) * int(getattr(config, "num_experts_per_tok", None) or 1)
    scores = 0 if engine.packed else 8 * longest * int(getattr(config, "num_attention_heads", None) or 1)
    logits = 0 if engine.tiled else (size + 12) * int(getattr(config, "vocab_size", 1 << 17))
    return size * (16 * hidden + 4 * inner) + 16 * hidden + scores + logits


def _free_bytes(device: torch.device) -> int:
    """Memory of a GPU that is free, or kept by torch without being used."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _outputs(
    model: nn.Module,
    batch: Batch,
    reference: Callable[[Batch], Outputs | SequenceStats] | None,
    head: bool,
) -> tuple[PairStats, Outputs, Outputs | SequenceStats | None]:
    policy = run(model, batch, head=head)
    live = reference(batch) if reference else None
    return pair_stats(batch, policy, live), policy, live


def _fitting(work: Callable[[], Any]) -> Any:
    """What work returns, or None where memory did not suffice; all that it held is free again then."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        said = str(error).lower()
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not any(w in said for w in NO_MEMORY):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _half(part: list[Example], engine: Engine) -> int:
    """Half of what a batch cost in tokens; DataError where it is a single pair."""
    if len(part) == 1:
        raise DataError(
            f"pair_id {part[0].pair_id}: its longest side, {part[0].longest} tokens, does not fit into memory even "
            "alone. Give a lower max_length, a smaller dtype, or spread the model over devices (--device-map auto)."
        )
    return sum(cost(p, part[0].longest, engine) for p in part) // 2
