"""The reference: live (a frozen model, or the policy with its adapter off) or log-probs stored on disk by content."""

import hashlib
import math
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from diagnostics.engine import engine_of, evaluating, innermost
from diagnostics.errors import DataError
from diagnostics.likelihood import Likelihood
from diagnostics.processes import share, tell
from diagnostics.progress import Progress
from diagnostics.runlog import read_frame, write_frame
from diagnostics.scoring import Scored, score
from diagnostics.sequences import Example
from diagnostics.stats import PAIR, SequenceStats, wide
from trainers.models import adapter_switched

Logps = dict[str, list[float]]  # per-token log-probs in nats, by the name of a row
Rows = dict[str, Logps]  # by content_key

CHECKED = 4  # cached rows that are scored again before any is used
SECONDS = 10.0  # between two parts on disk


@dataclass
class LiveReference:
    """A model that is run beside the policy. adapter: the policy itself with its LoRA adapter off (True), or with the
    adapter of that name.

    exact: at the start of the run its log-probs were the policy's to the last bit (see parity.py).
    """

    model: nn.Module
    likelihood: Likelihood
    adapter: bool | str = False
    exact: bool = False

    def __call__(self, batch: Any) -> Any:
        """The reference's outputs on a batch, without gradient and in eval mode."""
        with torch.no_grad(), self.running() as model:
            return self.likelihood.run(model, batch)

    @contextmanager
    def running(self) -> Iterator[nn.Module]:
        """The reference's model in eval mode, for the time being: the policy itself with another adapter, or none."""
        switched = adapter_switched(self.model, self.adapter) if self.adapter else nullcontext()
        with evaluating(self.model), switched:
            yield self.model

    def same(self, model: nn.Module) -> bool:
        """Whether running this model is running the reference: it is the same one, or it agreed at the start to the
        last bit and has the same weights now. False wherever that cannot be told cheaply."""
        if self.adapter or model is self.model:
            return not self.adapter
        if not self.exact or PartialState().num_processes > 1 or engine_of(model).name != engine_of(self.model).name:
            return False
        own, other = (dict(innermost(m).state_dict(keep_vars=True)) for m in (model, self.model))
        return own.keys() == other.keys() and all(_equal(v, other[k]) for k, v in own.items())


@dataclass(frozen=True)
class StoredReference:
    """Per-token log-probs by pair_id and row: a list of nats, one a completion token."""

    logps: Rows

    def __call__(self, batch: Any) -> SequenceStats:
        """SequenceStats of all R * B rows, log-probs only."""
        values = torch.zeros(batch.completion_mask.shape, device=batch.completion_mask.device)
        known = [x for name in batch.rows for i in batch.pair_ids for x in self.logps[i][name]]
        flat = torch.tensor(known, device=values.device, dtype=values.dtype)
        values[batch.completion_mask.bool()] = flat
        return SequenceStats(per_token_logps=values, completion_mask=batch.completion_mask)


@dataclass(frozen=True)
class SummedReference:
    """Sums of log-probs by pair_id, (chosen, rejected) in nats, where nothing is known of single tokens."""

    logps: Mapping[str, tuple[float, float]]

    def __call__(self, batch: Any) -> SequenceStats:
        """SequenceStats of all 2B rows, their sums only."""
        mask = batch.completion_mask
        sums = [self.logps[i][side] for side in (0, 1) for i in batch.pair_ids]
        return SequenceStats(
            per_token_logps=torch.full(mask.shape, torch.nan, device=mask.device),
            completion_mask=mask,
            summed=torch.tensor(sums, device=mask.device, dtype=wide(mask.device)),
        )


def keep_start(
    model: nn.Module, pairs: Sequence[Example], *, likelihood: Likelihood, path: Path, resumed: bool
) -> StoredReference:
    """The model as it is now, as the reference of the whole run: its log-probs of the pairs, kept in a file for a run
    that goes on. DataError where that is gone then: the model is another by now."""
    if not resumed:
        rows = _live(model, pairs, likelihood)
        if PartialState().is_main_process:
            write_frame(path, pd.DataFrame([{"key": key} | row for key, row in rows.items()]))
    else:
        frame = read_frame(path)
        known = () if frame.empty else frame[["key", *PAIR]].itertuples(index=False)
        rows = {str(key): {name: list(x) for name, x in zip(PAIR, found, strict=True)} for key, *found in known}
    if any(content_key(p) not in rows for p in pairs):
        raise DataError(
            f"{path}: does not hold the log-probs that the model gave these pairs at step 0, and without them nothing "
            "can be compared with the start. Restore this file, or start anew in another folder."
        )
    return StoredReference({p.pair_id: rows[content_key(p)] for p in pairs})


def precompute(
    model: nn.Module,
    pairs: Sequence[Example],
    *,
    likelihood: Likelihood,
    folder: str | Path,
    key: dict[str, str],
) -> StoredReference:
    """Reference log-probs of all pairs, from the cache in `folder` where the content is the same, else scored now.

    key: what the numbers depend on besides the pair itself (weights, tokenizer and dtype); a change of any gives
    other files, so a stale number is never read. A few cached rows are scored again: where they differ, all are.
    Several processes share the missing pairs, and read one another's numbers from the folder.
    """
    cache = Cache(Path(folder), hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:24])
    state = PartialState()
    known = cache.read()
    cached = [p for p in pairs if content_key(p) in known]
    # asked of all, also where nothing is cached: so every process has read before any writes
    if not _all_agree(lambda: not cached or _agrees(model, cached, known, likelihood, cache)):
        share(cache.forget)
        known = {}
    mine = [p for p in pairs[state.process_index :: state.num_processes] if content_key(p) not in known]
    if mine:
        known |= _score(model, mine, likelihood, cache)
    if state.num_processes > 1:
        state.wait_for_everyone()
        known = cache.read() | known
        alone = [p for p in pairs if content_key(p) not in known]  # the others write to a disk of their own
        known |= _score(model, alone, likelihood, cache) if alone else {}
    return StoredReference({p.pair_id: known[content_key(p)] for p in pairs})


def _all_agree(check: Callable[[], bool]) -> bool:
    """Whether the check holds in every process: devices of different kinds round differently."""
    return all(gather_object([check()]))


class Cache:
    """Rows on disk as Parquet files that are written in one move and never changed.

    A run writes files of its own only, a small one every few seconds, one in their place at the end: a stopped run
    keeps its rows, and runs that fill the same cache at once never touch each other's.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.seen: list[Path] = []

    def read(self) -> Rows:
        """All rows that can be read; a damaged file is only a cache, and is scored again."""
        known: Rows = {}
        self.seen = sorted(self.folder.glob(f"{self.name}*.parquet"))
        for path in self.seen:
            try:
                frame = read_frame(path)
            except DataError:
                continue
            names = [name for name in frame.columns if name != "key"]
            for k, *rows in frame[["key", *names]].itertuples(index=False) if len(frame) else ():
                known[k] = {name: list(r) for name, r in zip(names, rows, strict=True) if r is not None}
        return known

    def write(self, rows: Rows) -> Path:
        """Add rows in a new file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}-{uuid.uuid4().hex[:12]}.parquet"
        write_frame(path, pd.DataFrame([{"key": k, **logps} for k, logps in rows.items()]))
        return path

    def forget(self) -> None:
        """Remove the rows that were read; what another run has written since stays."""
        for path in self.seen:
            path.unlink(missing_ok=True)


def content_key(pair: Example) -> str:
    """Hash of the pair's token ids, and of its media by their repr: the same text cut or templated otherwise is another
    content. Of further rows, and of rows with a prompt of their own, also the name and the prompt."""
    rows = pair.rows.values()
    media = tuple(repr(row.media) for row in rows) if any(row.media is not None for row in rows) else ()
    own = [(n, r.prompt_ids) for n, r in pair.rows.items() if n not in PAIR or r.prompt_ids != pair.prompt_ids]
    content = (pair.prompt_ids, *(row.completion_ids for row in rows), *media, *own)
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def _score(model: nn.Module, pairs: Sequence[Example], likelihood: Likelihood, cache: Cache) -> Rows:
    """Score pairs into the cache, in parts while it goes on and as one file at the end."""
    rows: Rows = {}
    waiting: Rows = {}
    parts: list[Path] = []
    saved = time.monotonic()
    try:
        with Progress("reference log-probs", pairs, show=PartialState().is_main_process) as bar:
            for scored in score(model, pairs, likelihood=likelihood):
                waiting |= _rows(scored)
                if time.monotonic() - saved >= SECONDS:
                    parts.append(cache.write(waiting))
                    rows, waiting, saved = rows | waiting, {}, time.monotonic()
                bar.add(scored.pairs)
    finally:
        if waiting:
            parts.append(cache.write(waiting))
    rows |= waiting
    if len(parts) > 1:
        cache.write(rows)
        for part in parts:
            part.unlink(missing_ok=True)
    return rows


def _agrees(model: nn.Module, pairs: Sequence[Example], known: Rows, likelihood: Likelihood, cache: Cache) -> bool:
    """Whether a few cached rows are what the model says now, up to rounding; says so where they are not.

    The floor is four times the difference that other batches make now, and never below the square root of one
    rounding step of the numbers computed with, in nats a token.
    """
    drawn = random.Random(0).sample(sorted(pairs, key=content_key), min(CHECKED, len(pairs)))
    if not drawn:
        return True
    live = _live(model, drawn, likelihood)
    alone = {k: v for pair in drawn for k, v in _live(model, [pair], likelihood).items()}
    noise = max(_difference(live[k], alone[k]) for k in live)
    found = max(_difference(live[k], known[k]) for k in live)
    floor = max(4 * noise, torch.finfo(_dtype(model)).eps ** 0.5)
    if found <= floor:
        return True
    said = (
        f"{cache.folder}: cached reference log-probs differ from this model's by {found:.3g} nats on a token (rounding "
        f"explains {floor:.3g}), on {len(drawn)} pairs scored again. All of them are scored again now."
    )
    tell(said, file=sys.stderr)
    return False


def _live(model: nn.Module, pairs: Sequence[Example], likelihood: Likelihood) -> Rows:
    return {k: v for scored in score(model, pairs, likelihood=likelihood) for k, v in _rows(scored).items()}


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two weights are the same numbers; False for what is empty, as weights kept elsewhere are."""
    alike = one.numel() and (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape)
    return bool(alike) and not one.is_meta and torch.equal(one, other)


def _difference(one: Logps, other: Logps) -> float:
    """Largest difference of two pairs on a token, in nats; infinite where their rows are not of the same length."""
    if {name: len(row) for name, row in one.items()} != {name: len(row) for name, row in other.items()}:
        return math.inf
    return max((abs(a - b) for n in one for a, b in zip(one[n], other[n], strict=True)), default=0.0)


def _dtype(model: nn.Module) -> torch.dtype:
    """What the model computes with: the autocast dtype where that is on."""
    weights = next(model.parameters())
    kind = weights.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights.dtype


def _rows(scored: Scored) -> Rows:
    stats = {"chosen": scored.stats.chosen, "rejected": scored.stats.rejected} | scored.stats.extra
    return {content_key(p): {n: _tokens(s, i) for n, s in stats.items()} for i, p in enumerate(scored.pairs)}


def _tokens(stats: SequenceStats, i: int) -> list[float]:
    return stats.per_token_logps[i][stats.completion_mask[i].bool()].tolist()
