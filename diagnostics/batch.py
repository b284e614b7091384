"""PreferenceBatch: pairs as padded tensors, first B chosen rows, then the B rejected rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diagnostics.tokenized import TokenizedPair


@dataclass(frozen=True)
class PreferenceBatch:
    """B pairs as 2B rows of T tokens: rows 0..B-1 are chosen, rows B..2B-1 rejected, in the order of pair_ids.

    input_ids, attention_mask, completion_mask: (2B, T). completion_mask is 1 on completion tokens, EOS included.
    pair_ids: B strings. text_mask: (2B, T) completion_mask without the terminating EOS.
    lengths: (prompt, chosen, rejected) tokens of each pair where rows are padded on the right; needed for packing.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    pair_ids: tuple[str, ...]
    text_mask: Tensor | None = None
    lengths: tuple[tuple[int, int, int], ...] | None = None

    def to(self, device: torch.device | str) -> "PreferenceBatch":
        """The same batch on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def collate(pairs: Sequence[TokenizedPair], *, pad_token_id: int, padding_side: str = "right") -> PreferenceBatch:
    """Pad B tokenized pairs to one (2B, T) batch. No number depends on the padding side."""
    rows = [(p.prompt_ids, p.chosen_ids, p.chosen_has_eos) for p in pairs]
    rows += [(p.prompt_ids, p.rejected_ids, p.rejected_has_eos) for p in pairs]
    width = max(len(prompt) + len(completion) for prompt, completion, _ in rows)
    shape = (len(rows), width)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention, completion_mask, text_mask = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    for i, (prompt, completion, has_eos) in enumerate(rows):
        n, m = len(prompt), len(prompt) + len(completion)
        start = width - m if padding_side == "left" else 0
        input_ids[i, start : start + m] = torch.tensor([*prompt, *completion], dtype=torch.long)
        attention[i, start : start + m] = 1
        completion_mask[i, start + n : start + m] = 1
        text_mask[i, start + n : start + m - int(has_eos)] = 1
    lengths = tuple((len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)
    return PreferenceBatch(
        input_ids,
        attention,
        completion_mask,
        tuple(p.pair_id for p in pairs),
        text_mask,
        lengths if padding_side == "right" else None,
    )
