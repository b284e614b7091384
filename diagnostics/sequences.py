"""What is scored: a Sequence is a prompt and a completion as token ids; an Example holds sequences by name. No torch.

A preference pair is the example with the rows `chosen` and `rejected`; a single answer is one with one row.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from diagnostics.token_ids import TokenIds


@dataclass(frozen=True, slots=True)
class Sequence:
    """prompt_ids holds BOS and template tokens; completion_ids ends in its end token (EOS, or the chat template's end
    of a turn) where has_eos is True: False where the completion was truncated, where the end is switched off, or where
    the template ends a turn in ordinary text. media: what the model is shown beside the tokens, None for text alone;
    its repr says its whole content. Images and clips (a tuple of Media) stand in the order of their placeholders, which
    prompt_ids holds as many of as the model wants.
    """

    prompt_ids: TokenIds
    completion_ids: TokenIds
    has_eos: bool = True
    media: Any = None

    def __post_init__(self) -> None:
        for name in ("prompt_ids", "completion_ids"):  # any sequence of numbers is kept small
            object.__setattr__(self, name, TokenIds(getattr(self, name)))

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    def cut(self, room: int) -> "Sequence":
        """The same with a completion of at most `room` tokens; one that is cut has no end."""
        whole = len(self.completion_ids) <= room
        return replace(self, completion_ids=self.completion_ids[:room], has_eos=self.has_eos and whole)


@dataclass(frozen=True, slots=True)
class Example:
    """Sequences that belong together, by name, in the order in which a batch holds them.

    doubts: codes of what is doubtful about this tokenization (diagnostics.codes.MEANINGS explains each).
    """

    pair_id: str
    source_row: int
    rows: Mapping[str, Sequence]
    doubts: tuple[str, ...] = ()

    @property
    def chosen(self) -> Sequence:
        """The chosen answer of a pair."""
        return self.rows["chosen"]

    @property
    def rejected(self) -> Sequence:
        """The rejected answer of a pair."""
        return self.rows["rejected"]

    @property
    def prompt_ids(self) -> TokenIds:
        """The prompt of the first row; of a pair, that of both."""
        return next(iter(self.rows.values())).prompt_ids

    def only(self, names: Iterable[str]) -> "Example":
        """The same with these rows alone, in this order; the same object where it has no others."""
        names = tuple(names)
        return self if tuple(self.rows) == names else replace(self, rows={name: self.rows[name] for name in names})

    @property
    def longest(self) -> int:
        """Tokens of the longest row, prompt included."""
        return max(map(len, self.rows.values()))


def answer(example: Example, completion_ids: Iterable[int]) -> Sequence:
    """Another completion of an example's prompt, shown what its first row is shown."""
    return replace(next(iter(example.rows.values())), completion_ids=TokenIds(completion_ids), has_eos=True)


def pair_of(
    pair_id: str,
    source_row: int,
    prompt_ids: Iterable[int],
    chosen_ids: Iterable[int],
    rejected_ids: Iterable[int],
    ends: tuple[bool, bool] = (True, True),
    doubts: tuple[str, ...] = (),
    media: Any = None,
) -> Example:
    """A preference pair: two completions of one prompt. ends: whether chosen and rejected end in their end token.
    media: what the model is shown with both."""
    prompt = TokenIds(prompt_ids)
    chosen, rejected = TokenIds(chosen_ids), TokenIds(rejected_ids)
    rows = {
        name: Sequence(prompt, ids, end, media)
        for name, ids, end in zip(("chosen", "rejected"), (chosen, rejected), ends)
    }
    return Example(pair_id, source_row, rows, doubts)
