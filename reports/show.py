"""`chesboard show`: one row of a data set as the model sees it, token by token.

Colour is never the only sign: every part stands under a heading, tokens are parted by |, and the end token stands in
brackets. Text of the data, of the model and of its template is printed as plain text, control characters written out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from diagnostics.audit import DOUBTS, audit_pairs
from diagnostics.errors import UserError, printable
from diagnostics.pairs import PairTable
from diagnostics.sequences import Example
from diagnostics.templates import RenderedPair
from diagnostics.tokenized import render_pair

STYLES = {"prompt": "cyan", "chosen": "green", "rejected": "yellow"}
_END, _ID, _PARTED = "bold reverse", "dim", "dim"
_WHOLE = 8  # tokens that one character may be spread over


def show_row(
    table: PairTable, tokenizer: PreTrainedTokenizerBase, row: int, settings: dict[str, Any], *, plain: bool
) -> None:
    """Print one row (0-based): how it was read, its tokens and ids, what was left out, and what is doubtful."""
    count = len(table.pairs) + len(table.problems)
    if not 0 <= row < count:
        raise UserError(f"{table.source}: there is no row {row}. Give --row 0 to {count - 1}.")
    console = Console(no_color=plain, color_system=None if plain else "auto", highlight=False)
    console.print(*_lines(table, tokenizer, row, settings), sep="\n", soft_wrap=True)


def _lines(table: PairTable, tokenizer: Any, row: int, settings: dict[str, Any]) -> list[Text]:
    head = [_said(f"{table.where(row)} (row {row} of {len(table.pairs) + len(table.problems)})", "bold")]
    head += [_said(table.reading.said())]
    for problem in table.problems:
        if problem.source_row == row:
            return [*head, _said(f"skipped, {problem.code}: {problem.reason}", "bold red")]
    pair = next(p for p in table.pairs if p.source_row == row)
    head += [_said(f"pair_id {pair.pair_id}")]
    found = audit_pairs(replace(table, pairs=[pair], problems=[]), tokenizer, **settings)
    rendered = render_pair(pair, tokenizer)
    notes = rendered.notes if isinstance(rendered, RenderedPair) else ()
    left = [_said(note, "yellow") for note in notes]
    if not found.tokenized:
        return [*head, _said(f"skipped, {found.frame.iloc[0]['reason']}", "bold red"), *_texts(found.frame), *left]
    doubts = [_said(f"doubt, {code}: {DOUBTS[code]}", "magenta") for code in _codes(found.frame)]
    return [*head, *_tokens(found.tokenized[0], tokenizer), *left, *doubts]


def _codes(frame: Any) -> list[str]:
    return [code for code in str(frame.iloc[0]["doubts"]).split("; ") if code]


def _texts(frame: Any) -> list[Text]:
    """The texts of a row that has no tokens."""
    return [_said(f"[{name}] {frame.iloc[0][name]}", STYLES[name]) for name in STYLES]


def _tokens(pair: Example, tokenizer: Any) -> list[Text]:
    """A heading and a line of tokens for prompt, chosen and rejected."""
    ends = {"prompt": False, "chosen": pair.chosen.has_eos, "rejected": pair.rejected.has_eos}
    lines = []
    for name, ended in ends.items():
        ids = pair.prompt_ids if name == "prompt" else pair.rows[name].completion_ids
        closed = "" if name == "prompt" else ", with its end" if ended else ", without an end"
        lines.append(_said(f"[{name}] {len(ids)} tokens{closed}", f"bold {STYLES[name]}"))
        lines.append(_line(ids, tokenizer, STYLES[name], ended))
    return lines


def _line(ids: Sequence[int], tokenizer: Any, style: str, ended: bool) -> Text:
    """text:id|text:id ... and the end token as [END text:id]."""
    line = Text()
    for k, (text, own) in enumerate(pieces(tokenizer, ids[: len(ids) - ended])):
        line.append("|" if k else "", _PARTED)
        line.append(printable(text), style).append(":" + "+".join(map(str, own)), _ID)
    if ended:
        (text, own) = pieces(tokenizer, ids[-1:])[0]
        line.append("|[END " if len(line) else "[END ", _END).append(f"{printable(text)}:{own[0]}]", _END)
    return line


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
    """The tokens as (text, ids): one id each, but those that share a character stand together."""
    found: list[tuple[str, tuple[int, ...]]] = []
    start = 0
    for stop in range(1, len(ids) + 1):
        before = list(ids[max(0, start - 1) : start])  # a first token alone may lose its space
        head, whole = (_decode(tokenizer, part) for part in (before, [*before, *ids[start:stop]]))
        text = whole[len(head) :] if whole.startswith(head) else _decode(tokenizer, ids[start:stop])
        if text.endswith("�") and stop < len(ids) and stop - start < _WHOLE:
            continue
        found.append((text, tuple(ids[start:stop])))
        start = stop
    return found


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False) if ids else ""


def _said(text: str, style: str = "") -> Text:
    return Text(printable(text), style)
