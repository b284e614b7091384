"""Scoring: every pair through one forward pass, batched by length, rows out by pair_id."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diagnostics import measures
from diagnostics.batch import PreferenceBatch, collate
from diagnostics.forward import Outputs, pair_stats, run
from diagnostics.stats import PairStats, SequenceStats
from diagnostics.tokenized import TokenizedPair

BATCH_TOKENS = 8192  # padded tokens of one batch; peak memory grows with it, the numbers do not change


@dataclass(frozen=True)
class Scored:
    """One batch after its forward pass: pairs in batch order, their stats, and the models' raw outputs."""

    pairs: Sequence[TokenizedPair]
    batch: PreferenceBatch
    stats: PairStats
    policy: Outputs
    reference: Outputs | SequenceStats | None


def score(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    *,
    pad_token_id: int,
    reference: Callable[[PreferenceBatch], Outputs | SequenceStats] | None = None,
    head: bool = True,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[Scored]:
    """Score pairs without gradient, long ones first, at most batch_tokens padded tokens at once.

    reference: runs the reference model on a batch (then the exact KL is measured too).
    head: False skips the vocabulary head where only hidden states are wanted; log-probs are then NaN.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        for group in batches(pairs, batch_tokens):
            batch = collate(group, pad_token_id=pad_token_id).to(device)
            with torch.no_grad():
                policy = run(model, batch, head=head)
                live = reference(batch) if reference else None
                yield Scored(group, batch, pair_stats(batch, policy, live), policy, live)
    finally:
        model.train(training)


def batches(pairs: Sequence[TokenizedPair], batch_tokens: int) -> Iterator[list[TokenizedPair]]:
    """Pairs of similar length together, the longest first, so that a batch too large shows at once."""
    group: list[TokenizedPair] = []
    for pair in sorted(pairs, key=lambda p: (-width(p), p.pair_id)):
        if group and 2 * width(group[0]) * (len(group) + 1) > batch_tokens:
            yield group
            group = []
        group.append(pair)
    if group:
        yield group


def width(pair: TokenizedPair) -> int:
    """Tokens of the pair's longer side, prompt included."""
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def rows(
    pairs: Sequence[TokenizedPair | str], stats: PairStats, names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
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
