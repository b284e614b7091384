"""Batch: examples as padded tensors, all first rows first, then all second rows ..."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diagnostics.sequences import Example


@dataclass(frozen=True)
class Batch:
    """B examples with the same R names as R * B rows of T tokens: those of the first name (of pairs: chosen) in the
    order of pair_ids, then those of the second (rejected) ...

    input_ids, attention_mask, completion_mask: (R * B, T). completion_mask is 1 on completion tokens, EOS included.
    pair_ids: B strings. names: R strings. text_mask: (R * B, T) completion_mask without the terminating EOS.
    lengths, first: where rows are padded on the right, what packing needs of each row: (prompt, completion) tokens, and
    (the first row with the same prompt, the first row that is the same altogether).
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    pair_ids: tuple[str, ...]
    names: tuple[str, ...] = ("chosen", "rejected")
    text_mask: Tensor | None = None
    lengths: tuple[tuple[int, int], ...] | None = None
    first: tuple[tuple[int, int], ...] = ()

    @property
    def rows(self) -> dict[str, slice]:
        """Where the rows of each name stand."""
        n = len(self.pair_ids)
        return {name: slice(k * n, (k + 1) * n) for k, name in enumerate(self.names)}

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def collate(examples: Sequence[Example], *, pad_token_id: int, padding_side: str = "right") -> Batch:
    """Pad B examples, which have the same names, to one batch. No number depends on the padding side."""
    names = tuple(examples[0].rows)
    rows = [example.rows[name] for name in names for example in examples]
    width = max(map(len, rows))
    ends = np.array([(len(row.prompt_ids), len(row), len(row) - row.has_eos) for row in rows])
    prompt, row_end, text_end = (ends[:, k : k + 1] for k in range(3))
    place = np.arange(width)[None] - (width - row_end if padding_side == "left" else 0)  # in the row itself
    spans = ((0, row_end), (prompt, row_end), (prompt, text_end))
    real, completion, text = ((low <= place) & (place < high) for low, high in spans)
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    ids[real] = np.concatenate([np.asarray(part) for row in rows for part in (row.prompt_ids, row.completion_ids)])
    attention, completion_mask, text_mask = (torch.from_numpy(m.astype(np.int64)) for m in (real, completion, text))
    pair_ids = tuple(e.pair_id for e in examples)
    batch = Batch(torch.from_numpy(ids), attention, completion_mask, pair_ids, names, text_mask)
    if padding_side == "left":
        return batch
    prompts: dict[object, int] = {}
    whole: dict[object, int] = {}
    first = []
    for i, row in enumerate(rows):
        asked = (row.prompt_ids, id(row.media))
        first.append((prompts.setdefault(asked, i), whole.setdefault((*asked, row.completion_ids), i)))
    return replace(batch, lengths=tuple((len(r.prompt_ids), len(r.completion_ids)) for r in rows), first=tuple(first))
