"""Scoring: every pair through one forward pass, batched by length, rows out by pair_id.

A batch that does not fit into memory is cut in halves and tried again; no number depends on it beyond rounding.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from diagnostics import measures
from diagnostics.engine import device_of, evaluating
from diagnostics.errors import DataError
from diagnostics.likelihood import Likelihood, pair_stats
from diagnostics.processes import processes
from diagnostics.sequences import Example
from diagnostics.stats import PairStats, SequenceStats, wide

T = TypeVar("T")

NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")


@dataclass(frozen=True)
class Scored:
    """One batch after its forward pass: pairs in batch order, their stats, and what the models' runs gave."""

    pairs: Sequence[Example]
    batch: Any
    stats: PairStats
    policy: Any
    reference: Any


def score(
    model: nn.Module,
    pairs: Sequence[Example],
    *,
    likelihood: Likelihood,
    reference: Callable[[Any], Any] | None = None,
    batch_tokens: int | None = None,
    same: bool = False,
) -> Iterator[Scored]:
    """Score pairs without gradient, long ones first, at most batch_tokens tokens at once (see `batches`).

    reference: runs the reference model on a batch (then the exact KL is measured too), or gives its stored stats.
    batch_tokens: None finds a size that fits (see Likelihood.budget). same: the reference is this model, so that one
    run is enough for both.
    """
    groups = batches(pairs, batch_tokens or likelihood.budget(model, pairs), likelihood.cost(model))
    yield from score_batches(model, groups, likelihood=likelihood, reference=reference, same=same)


def score_batches(
    model: nn.Module,
    groups: Iterable[Sequence[Example]],
    *,
    likelihood: Likelihood,
    reference: Callable[[Any], Any] | None = None,
    same: bool = False,
) -> Iterator[Scored]:
    """`score` with the batches as they are given; one that does not fit is halved, as are those after it."""
    device = device_of(model)

    def work(part: Sequence[Example]) -> Scored:
        batch = likelihood.collate(part).to(device)
        with torch.no_grad():
            policy = likelihood.run(model, batch)
            live = policy if same else reference(batch) if reference else None
            return Scored(part, batch, pair_stats(likelihood, batch, policy, live), policy, live)

    for _, scored in fitting(model, groups, work, likelihood=likelihood):
        with torch.no_grad():
            yield scored


def score_rows(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    likelihood: Likelihood,
    reference: Callable[[Any], Any] | None = None,
) -> Iterator[tuple[Sequence[Example], dict[str, SequenceStats], dict[str, SequenceStats]]]:
    """Score examples with rows of any names, one answer or many, without gradient, long ones first: each batch with the
    stats of its rows by name, under the model and under the reference. All examples have the same names."""
    device = device_of(model)

    def work(part: Sequence[Example]) -> tuple[dict[str, SequenceStats], dict[str, SequenceStats]]:
        batch = likelihood.collate(part).to(device)
        with torch.no_grad():
            return likelihood.stats(batch, likelihood.run(model, batch), reference(batch) if reference else None)

    groups = batches(examples, likelihood.budget(model, examples), likelihood.cost(model))
    for part, found in fitting(model, groups, work, likelihood=likelihood):
        yield part, *found


def fitting(
    model: nn.Module,
    groups: Iterable[Sequence[Example]],
    work: Callable[[Sequence[Example]], T],
    *,
    likelihood: Likelihood,
) -> Iterator[tuple[Sequence[Example], T]]:
    """Each batch with what work makes of it, the model in eval mode; one that does not fit into memory is halved, as
    are those after it."""
    cost, limit = likelihood.cost(model), sys.maxsize
    with evaluating(model):
        for group in groups:
            waiting = list(batches(group, limit, cost))
            while waiting:
                part = waiting.pop(0)
                found = _fitting(lambda part=part: work(part))
                if found is not None:
                    yield part, found
                    continue
                limit = min(limit, _half(part, cost))
                waiting = [smaller for w in (part, *waiting) for smaller in batches(w, limit, cost)]


def dealt(
    pairs: Sequence[Example], done: Collection[str], batch_tokens: int, cost: Callable[[Example, int], int]
) -> list[list[Example]]:
    """This process's share of the batches, without the pairs that are done.

    The batches are the same however many processes there are and however often they were stopped, so the numbers are
    too; they are dealt out whole, in turn, so that every process has long and short ones.
    """
    left = [found for g in batches(pairs, batch_tokens, cost) if (found := [p for p in g if p.pair_id not in done])]
    return left[processes().process_index :: processes().num_processes]


def batches(
    pairs: Sequence[Example], batch_tokens: int, cost: Callable[[Example, int], int]
) -> Iterator[list[Example]]:
    """Pairs of similar length together, the longest first, so that a batch too large shows at once. Examples with other
    rows stand in other batches.

    batch_tokens: most tokens of a batch. cost: how many a pair adds where the longest row has so many
    (Likelihood.cost, or token_likelihood.padded).
    """
    group: list[Example] = []
    used = 0
    for pair in sorted(pairs, key=lambda p: (tuple(p.rows), -p.longest, p.pair_id)):
        if group and (pair.rows.keys() != group[0].rows.keys() or used + cost(pair, group[0].longest) > batch_tokens):
            yield group
            group, used = [], 0
        group.append(pair)
        used += cost(pair, group[0].longest)
    if group:
        yield group


def rows(pairs: Sequence[Example | str], stats: PairStats, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One dictionary a pair: pair_id, log-probs, lengths and every measure (NaN where not measured)."""
    ids = [p if isinstance(p, str) else p.pair_id for p in pairs]
    columns = likelihoods(stats) | {name: measures.load(name)(stats) for name in names or measures.names()}
    values = numbers(columns)
    return [{"pair_id": pair_id} | {name: v[i] for name, v in values.items()} for i, pair_id in enumerate(ids)]


def numbers(columns: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """Columns (B,) as Python's numbers, fetched all at once: each fetching would make a GPU wait."""
    device = next(iter(columns.values())).device
    found = torch.stack([column.detach().to(device, wide(device)) for column in columns.values()])
    return dict(zip(columns, found.tolist(), strict=True))


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


def _half(part: list[Example], cost: Callable[[Example, int], int]) -> int:
    """Half of what a batch cost in tokens; DataError where it is a single pair."""
    if len(part) == 1:
        raise DataError(
            f"pair_id {part[0].pair_id}: its longest side, {part[0].longest} tokens, does not fit into memory even "
            "alone. Give a lower max_length, a smaller dtype, or spread the model over devices (--device-map auto)."
        )
    return sum(cost(p, part[0].longest) for p in part) // 2
