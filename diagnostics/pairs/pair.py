"""A preference pair, a row that gives none, and the table of both with how its rows were read. No torch."""

from dataclasses import asdict, dataclass, field
from typing import Any

from diagnostics.errors import printable
from diagnostics.media import Media
from diagnostics.pairs.messages import Message, Text
from diagnostics.pairs.rows import RawRows

_ROLES = ("system", "prompt", "media", "chosen", "rejected", "phrases", "preference", "tools", "template arguments")
_ROLES += ("scores", "id")


@dataclass(frozen=True)
class PreferencePair:
    """One pair. prompt, chosen, rejected: text, or lists of chat messages ({"role", "content"}) for chat data.

    pair_id: the row's own id, else 16 hex digits of a hash of the content. source_row: 0-based row of the source.
    columns: the row's other fields, as read. tools, template_kwargs: what the chat template gets besides the messages.
    chat_prompt: a text prompt as a chat, where its columns are what a user asks (see tokenized.render_pair).
    media: images and clips, in the order of the prompt's parts of their kinds (see pairs.media).
    """

    pair_id: str
    source_row: int
    prompt: Text
    chosen: Text
    rejected: Text
    columns: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    chat_prompt: list[Message] | None = None
    media: tuple[Media, ...] = ()


@dataclass(frozen=True)
class RowProblem:
    """A row that gives no pair: a short code, the field at fault, and the reason in words."""

    source_row: int
    code: str
    field: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """How the rows were read. used: role -> columns (roles: prompt, system, chosen ...); ignored: all other columns."""

    shape: str
    used: dict[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def said(self) -> str:
        """One or two sentences."""
        roles = [f"{role} from {' + '.join(self.used[role])}" for role in _ROLES if self.used.get(role)]
        left = (
            f"ignored: {', '.join(c or '(a column without a name)' for c in self.ignored)}."
            if self.ignored
            else "no column is ignored."
        )
        notes = "".join(f" {note[:1].upper()}{note[1:]}." for note in self.notes)
        return printable(f"Read as {self.shape}: {'; '.join(roles)}; {left}{notes}")

    def record(self) -> dict[str, Any]:
        """As it stands in manifest.json."""
        return asdict(self)


@dataclass(frozen=True)
class PairTable:
    """A data set as pairs, and the rows that gave none. Every source row is in exactly one of the two."""

    source: str
    reading: Reading
    pairs: list[PreferencePair]
    problems: list[RowProblem]
    raw: RawRows

    @property
    def shape(self) -> str:
        """The name of the shape that the rows were read by."""
        return self.reading.shape

    def where(self, source_row: int) -> str:
        """File and place of a row as a person finds it: "pairs.jsonl: line 3", or "... row 2" (0-based)."""
        return f"{self.source}: {self.raw.place(source_row)}"
