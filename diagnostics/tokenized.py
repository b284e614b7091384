"""TokenizedPair: one preference pair as token ids, with the prompt boundary exact."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenizedPair:
    """Ids of one pair. prompt_ids holds BOS and template tokens; chosen_ids and rejected_ids end in EOS
    where *_has_eos is True (False where the completion was truncated, or EOS is switched off)."""

    pair_id: str
    source_row: int
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    chosen_has_eos: bool = True
    rejected_has_eos: bool = True
