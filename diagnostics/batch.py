"""Batch: examples as padded tensors, all first rows first, then all second rows ..."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diagnostics.errors import DataError
from diagnostics.sequences import Example
from diagnostics.vision.tensors import Visual, visual


@dataclass(frozen=True)
class Batch:
    """B examples with the same R names as R * B rows of T tokens: those of the first name (of pairs: chosen) in the
    order of pair_ids, then those of the second (rejected) ...

    input_ids, attention_mask, completion_mask: (R * B, T). completion_mask is 1 on completion tokens, EOS included.
    pair_ids: B strings. names: R strings. text_mask: (R * B, T) completion_mask without the terminating EOS.
    lengths, first: where rows are padded on the right, what packing needs of each row: (prompt, completion) tokens, and
    (the first row with the same prompt, the first row that is the same altogether). visual: what the rows are shown
    beside the tokens, None for text alone.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    pair_ids: tuple[str, ...]
    names: tuple[str, ...] = ("chosen", "rejected")
    text_mask: Tensor | None = None
    lengths: tuple[tuple[int, int], ...] | None = None
    first: tuple[tuple[int, int], ...] = ()
    visual: Visual | None = None

    @property
    def rows(self) -> dict[str, slice]:
        """Where the rows of each name stand."""
        n = len(self.pair_ids)
        return {name: slice(k * n, (k + 1) * n) for k, name in enumerate(self.names)}

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor | Visual)}
        return replace(self, **moved)


def collate(
    examples: Sequence[Example], *, pad_token_id: int, padding_side: str = "right", family: Any = None
) -> Batch:
    """Pad B examples, which have the same names, to one batch. No number depends on the padding side.

    family: the model's family where it is shown media (vision.placeholders.family_of); else media only keep prompts
    apart. Raises DataError where a row's placeholders are not those that its media make.
    """
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
    seen = _visual(examples, names, rows, family)
    batch = Batch(torch.from_numpy(ids), attention, completion_mask, pair_ids, names, text_mask, visual=seen)
    if padding_side == "left":
        return batch
    prompts: dict[object, int] = {}
    whole: dict[object, int] = {}
    first = []
    for i, row in enumerate(rows):
        asked = (row.prompt_ids, repr(row.media))
        first.append((prompts.setdefault(asked, i), whole.setdefault((*asked, row.completion_ids), i)))
    return replace(batch, lengths=tuple((len(r.prompt_ids), len(r.completion_ids)) for r in rows), first=tuple(first))


def _visual(examples: Sequence[Example], names: Sequence[str], rows: Sequence[Any], family: Any) -> Visual | None:
    """What the rows are shown, their placeholders counted."""
    if family is None:
        return None
    found = visual(family, [row.media for row in rows])
    tokens = {kind: getattr(family.config, f"{kind}_token_id", None) for kind in ("image", "video")}
    for i, row in enumerate(rows):
        where = f"pair_id {examples[i % len(examples)].pair_id}, {names[i // len(examples)]}"
        prompt, completion = np.asarray(row.prompt_ids), np.asarray(row.completion_ids)
        shown = [found.shown[k] for k in found.rows[i]] if found is not None else []
        for kind, token in tokens.items():
            written, made = _runs(prompt == token), [run for s in shown if s.kind == kind for run in s.runs]
            apart = any(s.grid for s in shown)  # positions are counted run by run
            if written != made if apart else sum(written) != sum(made):
                raise DataError(
                    f"{where}: its prompt has {sum(written)} placeholders of the kind {kind} and its media make "
                    f"{sum(made)}, or they do not stand apart. Tokenize it with this model's own placeholders, and cut "
                    "no prompt inside them."
                )
            if bool((completion == token).any()):
                raise DataError(f"{where}: its answer holds a placeholder of the kind {kind}. Leave the pair out.")
    return found


def _runs(marked: np.ndarray) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.astype(np.int8), [0]])))
    return (edges[1::2] - edges[::2]).tolist()
