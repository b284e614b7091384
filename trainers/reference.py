"""The reference: live (a frozen model, or the policy with its adapter off) or log-probs stored on disk by content."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from diagnostics.batch import PreferenceBatch
from diagnostics.errors import DataError
from diagnostics.forward import Outputs, run
from diagnostics.runlog import read_frame, write_frame
from diagnostics.scoring import score
from diagnostics.stats import SequenceStats
from diagnostics.tokenized import TokenizedPair
from trainers.models import adapter_off


@dataclass
class LiveReference:
    """A model that is run beside the policy. adapter=True: the policy itself with its LoRA adapter off."""

    model: nn.Module
    adapter: bool = False

    def __call__(self, batch: PreferenceBatch) -> Outputs:
        """The reference's outputs on a batch, without gradient and in eval mode."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                if not self.adapter:
                    return run(self.model, batch)
                with adapter_off(self.model):
                    return run(self.model, batch)
        finally:
            self.model.train(training and self.adapter)


@dataclass(frozen=True)
class StoredReference:
    """Per-token log-probs by pair_id: (chosen, rejected), each a list of nats, one a completion token."""

    logps: dict[str, tuple[list[float], list[float]]]

    def __call__(self, batch: PreferenceBatch) -> SequenceStats:
        """SequenceStats of all 2B rows, log-probs only."""
        sides = [self.logps[i][0] for i in batch.pair_ids] + [self.logps[i][1] for i in batch.pair_ids]
        values = torch.zeros(batch.completion_mask.shape, device=batch.input_ids.device)
        flat = torch.tensor([x for side in sides for x in side], device=values.device, dtype=values.dtype)
        values[batch.completion_mask.bool()] = flat
        return SequenceStats(per_token_logps=values, completion_mask=batch.completion_mask)


def precompute(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    *,
    pad_token_id: int,
    folder: str | Path,
    key: dict[str, str],
) -> StoredReference:
    """Reference log-probs of all pairs, from the cache in `folder` where the content is the same, else scored now.

    key: what the numbers depend on besides the pair itself (weights, tokenizer and dtype); a change of any gives
    another file, so a stale number is never read.
    """
    path = Path(folder) / f"{hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:24]}.parquet"
    known = _read(path)
    missing = [p for p in pairs if content_key(p) not in known]
    if missing:
        rows = _score(model, missing, pad_token_id)
        known |= rows
        _write(path, known)
    return StoredReference({p.pair_id: known[content_key(p)] for p in pairs})


def content_key(pair: TokenizedPair) -> str:
    """Hash of the pair's token ids: the same text cut or templated otherwise is another content."""
    return hashlib.sha256(repr((pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)).encode()).hexdigest()[:32]


def _score(model: nn.Module, pairs: Sequence[TokenizedPair], pad_token_id: int) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    with tqdm(total=len(pairs), desc="reference log-probs", unit="pair", disable=None) as bar:
        for scored in score(model, pairs, pad_token_id=pad_token_id):
            for i, pair in enumerate(scored.pairs):
                rows[content_key(pair)] = (_tokens(scored.stats.chosen, i), _tokens(scored.stats.rejected, i))
            bar.update(len(scored.pairs))
    return rows


def _tokens(stats: SequenceStats, i: int) -> list[float]:
    return stats.per_token_logps[i][stats.completion_mask[i].bool()].tolist()


def _read(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    try:
        frame = read_frame(path)
    except DataError:
        return {}  # a damaged cache file is only a cache: score again
    if frame.empty:
        return {}
    return {k: (list(c), list(r)) for k, c, r in zip(frame["key"], frame["chosen"], frame["rejected"], strict=True)}


def _write(path: Path, known: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"key": k, "chosen": c, "rejected": r} for k, (c, r) in known.items()]
    write_frame(path, pd.DataFrame(rows))
