"""`chesboard show`: one row of a data set as the model sees it, token by token.

Colour is never the only sign: every part stands under a heading, tokens are parted by |, and the end token stands in
brackets. Text of the data, of the model and of its template is printed as plain text, control characters written out.
Images and clips get a line each, and where the terminal has colours their first frames, small; a run of placeholders
is one token with a count. With a file's name the same is written as a page, with frames of every clip.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from diagnostics.audit import audit_pairs
from diagnostics.codes import DOUBTS
from diagnostics.errors import UserError, printable
from diagnostics.files import replace_text
from diagnostics.media import Media
from diagnostics.pairs import PairTable
from diagnostics.sequences import Example
from diagnostics.templates import RenderedPair
from diagnostics.tokenized import render_pair
from diagnostics.vision.prompts import written
from diagnostics.vision.thumbs import caption
from reports import standalone
from reports.tables import say
from reports.thumbs import strip

STYLES = {"prompt": "cyan", "chosen": "green", "rejected": "yellow"}
_END, _ID, _PARTED = "bold reverse", "dim", "dim"
_WHOLE = 8  # tokens that one character may be spread over
_RUN = 3  # equal special tokens that are shown as one with a count
PAGE_STYLE = """p { margin: 0.25rem 0; overflow-wrap: anywhere; white-space: pre-wrap }
figure { margin: 0.25rem 0 0.75rem }
.bold { font-weight: 600 } .dim { color: var(--quiet); font-size: 0.8em } .reverse { background: var(--tint) }
.cyan { color: var(--cyan) } .green { color: var(--green) } .yellow { color: var(--yellow) } .red { color: var(--red) }
.magenta { color: var(--magenta) }
"""
_THUMBS, _THUMB = 6, 16  # frames that are drawn of a clip, and their width in characters


def show_row(
    table: PairTable, tokenizer: PreTrainedTokenizerBase, row: int, settings: dict[str, Any], *, plain: bool
) -> None:
    """Print one row (0-based): how it was read, its tokens and ids, what was left out, and what is doubtful."""
    console = Console(no_color=plain, color_system=None if plain else "auto", highlight=False)
    drawn = console.color_system is not None
    console.print(*_lines(_found(table, tokenizer, row, settings), drawn), sep="\n", soft_wrap=True)


def _lines(found: Sequence[Text | Media], drawn: bool) -> list[Text]:
    """What is printed: of each medium its first frames where they can be drawn, else nothing."""
    lines: list[Text] = []
    for line in found:
        lines += [line] if isinstance(line, Text) else _drawn(line.frames()) if drawn else []
    return lines


def write_row(path: Path, table: PairTable, tokenizer: Any, row: int, settings: dict[str, Any]) -> None:
    """Write the same as a page that holds everything, with frames of each clip under its line."""
    lines = _found(table, tokenizer, row, settings)
    said = [_html(line) if isinstance(line, Text) else strip(line, caption(line)) for line in lines]
    replace_text(path, standalone.page(printable(table.where(row)), "\n".join(said), PAGE_STYLE))
    say(f"look at it: {path}")


def _html(line: Text) -> str:
    """A line with what its parts are as classes; what is not marked is the line's own style."""
    parts, at = [], 0
    for span in line.spans:
        parts += [(line.plain[at : span.start], ""), (line.plain[span.start : span.end], str(span.style))]
        at = span.end
    parts.append((line.plain[at:], ""))
    inside = "".join(f'<span class="{style}">{escape(t)}</span>' if style else escape(t) for t, style in parts)
    return f'<p class="{line.style}">{inside}</p>'


def _found(table: PairTable, tokenizer: Any, row: int, settings: dict[str, Any]) -> list[Text | Media]:
    """The lines of a row; a medium stands where its frames are drawn. UserError where there is no such row."""
    count = len(table.pairs) + len(table.problems)
    if not 0 <= row < count:
        raise UserError(f"{table.source}: there is no row {row}. Give --row 0 to {count - 1}.")
    head: list[Text | Media] = [_said(f"{table.where(row)} (row {row} of {count})", "bold")]
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
    head += _media(pair.media, rendered, tokenizer)
    if not found.tokenized:
        return [*head, _said(f"skipped, {found.frame.iloc[0]['reason']}", "bold red"), *_texts(found.frame), *left]
    doubts = [_said(f"doubt, {code}: {DOUBTS[code]}", "magenta") for code in _codes(found.frame)]
    return [*head, *_tokens(found.tokenized[0], tokenizer), *left, *doubts]


def _media(media: Sequence[Media], rendered: Any, tokenizer: Any) -> list[Text | Media]:
    """A line for each medium, and itself."""
    shown = isinstance(rendered, RenderedPair) and rendered.media
    texts = written(rendered, tokenizer.family) if shown else [None] * len(media)
    lines: list[Text | Media] = []
    for number, (medium, text) in enumerate(zip(media, texts, strict=True), 1):
        count, height, width = medium.shape()
        frames = f"{count} frame{'s' if count > 1 else ''} of {width} x {height} pixels"
        told = [medium.kind, frames, medium.source, f"digest {medium.digest}", *medium.view]
        told += [_placeholders(text, tokenizer)] if text is not None else []
        lines += [_said(f"[media {number}] {', '.join(told)}", "bold magenta"), medium]
    return lines


def _placeholders(text: str, tokenizer: Any) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    token, count = Counter(ids).most_common(1)[0]
    return f"{count} placeholders {_decode(tokenizer, [token])}"


def _drawn(frames: np.ndarray) -> list[Text]:
    """The first frames beside one another, two pixels a character, one above the other."""
    small = [Image.fromarray(frame) for frame in frames[:_THUMBS]]
    high = max(2, round(_THUMB * frames.shape[1] / frames.shape[2] / 2) * 2)
    pixels = np.concatenate(
        [np.pad(np.asarray(f.resize((_THUMB, min(high, 2 * _THUMB)))), ((0, 0), (0, 1), (0, 0))) for f in small], axis=1
    )
    lines = []
    for above, below in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        line = Text()
        for upper, lower in zip(above, below, strict=True):
            line.append("▀", Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower)))
        lines.append(line)
    return lines


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
    """text:id|text:id ... and the end token as [END text:id]; a run of one special token as text:id x count."""
    line, special = Text(), tokenizer.added_tokens_decoder
    for k, (text, own, count) in enumerate(_runs(pieces(tokenizer, ids[: len(ids) - ended]), special)):
        line.append("|" if k else "", _PARTED)
        line.append(printable(text), style).append(":" + "+".join(map(str, own)), _ID)
        line.append(f" x {count}" if count > 1 else "", _ID)
    if ended:
        (text, own) = pieces(tokenizer, ids[-1:])[0]
        line.append("|[END " if len(line) else "[END ", _END).append(f"{printable(text)}:{own[0]}]", _END)
    return line


def _runs(found: list[tuple[str, tuple[int, ...]]], special: Any) -> list[tuple[str, tuple[int, ...], int]]:
    """Tokens with how often each stands there; only runs of special tokens are counted."""
    runs = [(piece, len(list(same))) for piece, same in groupby(found)]
    counted = [(*piece, n, n >= _RUN and piece[1][0] in special) for piece, n in runs]
    return [one for text, own, n, run in counted for one in ([(text, own, n)] if run else [(text, own, 1)] * n)]


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
