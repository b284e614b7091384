"""Pieces of a report page: everything untrusted is escaped here, once."""

import base64
import io
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any
from urllib.parse import quote

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from analysis.show import files
from analysis.show.wording import clip, count, number, percent, span
from analysis.tables.runs import Pictures
from diagnostics.finding import Finding

SHORT, LONG = 24, 60  # characters of a cell that stays on one line, and of one that gets room


@dataclass(frozen=True)
class Block:
    """A piece of safe HTML that a notebook shows."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"Block({len(self.html)} characters of HTML)"


def stack(*blocks: Block) -> Block:
    """Blocks one below the other."""
    return Block("\n".join(block.html for block in blocks))


def note(text: str, kind: str = "note") -> Block:
    """A paragraph; `kind` is its style: note, good, bad or quiet."""
    return Block(f'<p class="{escape(kind)}">{escape(text)}</p>')


EMPTY = Block("")  # a section that has nothing to say: the page leaves it out, with its heading


def heading(words: str, anchor: str = "") -> Block:
    """A small heading; anchor: makes it a place to link to."""
    return Block(f"<h3{_at(anchor)}>{escape(words)}</h3>")


def card(head: str, *blocks: Block) -> Block:
    """A framed box with a heading: one pair."""
    return Block(f'<div class="pair">{note(head, "head").html}{stack(*blocks).html}</div>')


def missing(what: str, why: str) -> Block:
    """Says plainly that a section has nothing to show, and why. A section that holds nothing else becomes a line under
    "Not measured here" (reports.notebooks)."""
    return note(f"{what}: not measured. {why}", "quiet missing")


def fold(words: str, *blocks: Block, anchor: str = "") -> Block:
    """Blocks behind a line that opens them; on paper they are open. anchor: makes it a place to link to."""
    return Block(f"<details><summary{_at(anchor)}>{escape(words)}</summary>{stack(*blocks).html}</details>")


def _at(anchor: str) -> str:
    return f' id="{escape(anchor)}"' if anchor else ""


def command(words: str) -> Block:
    """A command to copy; a line ends between its words, never inside an option."""
    safe = re.sub(r"[^ \n]+", r"<span>\g<0></span>", escape(words))
    return Block(f'<code class="command">{safe}</code>')


def links(found: Sequence[tuple[str, str]]) -> Block:
    """A line of words, each a link where it has an address."""
    made = [f'<a href="{escape(to)}">{escape(words)}</a>' if to else escape(words) for words, to in found]
    return Block(f'<p class="bar">{" · ".join(made)}</p>')


def term(words: str, meaning: str) -> str:
    """A word that explains itself under the pointer and on focus. Safe HTML."""
    return f'<span class="term" tabindex="0">{escape(words)}<span class="tip"> {escape(meaning)}</span></span>'


@dataclass(frozen=True)
class Tile:
    """One large number: what it is (label, and in more words), its value, and n with the interval."""

    label: str
    meaning: str
    value: str
    below: tuple[str, ...] = ()


def tiles(found: Sequence[Tile]) -> Block:
    """Large numbers side by side."""
    made = [
        f'<div class="tile"><div class="label">{term(t.label, t.meaning)}</div>'
        f'<div class="value">{escape(t.value)}</div>'
        + "".join(f'<div class="below">{escape(line).replace(" %", "&nbsp;%")}</div>' for line in t.below)
        + "</div>"
        for t in found
    ]
    return Block(f'<div class="tiles">{"".join(made)}</div>')


def picture(figure: Figure, alt: str) -> Block:
    """A figure as an image inside the page, which scrolls where a screen is too narrow to read it whole; `alt` says in
    words what it shows."""
    files.keep_figure(figure, alt)
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=140, metadata={"Software": None})
    with Image.open(drawn) as image:  # 128 colours, lossless WebP: a quarter of the size, and no difference to be seen
        few = image.convert("RGB").quantize(128, dither=Image.Dither.NONE).convert("RGB")
        few.save(small, "webp", lossless=True, method=4)
    data = base64.b64encode(small.getvalue()).decode()
    width, words = round(102 * figure.get_figwidth()), escape(alt)  # the same size of letters in every figure
    shown = f'<img class="figure" width="{width}" alt="{words}" src="data:image/webp;base64,{data}">'
    return Block(f'<div class="drawn" tabindex="0" role="region" aria-label="figure">{shown}</div>')


def shown(pictures: Pictures, pair_id: str) -> list[Block]:
    """What a pair shows."""
    return [frames(png, words) for words, png in pictures.found.get(pair_id, [])]


def not_shown(pictures: Pictures) -> list[Block]:
    """A line that says of how many pairs the frames are left out, where there are any."""
    said = f"Frames of {count(pictures.left, 'more pair')} would make this page too heavy: see frames.parquet."
    return [note(said, "quiet")] if pictures.left else []


def frames(png: bytes, words: str) -> Block:
    """A picture that was made before, as frames of a clip, with its words under it and for who cannot see it."""
    data = base64.b64encode(png).decode()
    image = f'<img class="frames" alt="{escape(words)}" src="data:image/png;base64,{data}" style="max-width:100%">'
    return Block(f'<figure style="margin:0">{image}<figcaption class="quiet">{escape(words)}</figcaption></figure>')


def beside(*blocks: Block) -> Block:
    """Blocks side by side, one below the other where the page is narrow."""
    return Block(f'<div style="display:flex;flex-wrap:wrap;gap:16px">{"".join(block.html for block in blocks)}</div>')


def table(
    frame: pd.DataFrame,
    forms: Mapping[str, Callable[[float], str]] | None = None,
    heads: Mapping[str, str] | None = None,
    below: Mapping[str, str] | None = None,
) -> Block:
    """A table. forms: how the numbers of a column read; heads: what a column is called; below: for a column the one
    whose words stand under its own, so that they are never off the screen. All cells are escaped."""
    forms, heads, below = forms or {}, heads or {}, below or {}
    names = {c: heads.get(c, str(c)) for c in frame.columns}
    shown = frame.assign(**{str(c): [forms[str(c)](v) for v in frame[c]] for c in frame.columns if str(c) in forms})
    files.keep_table(frame, shown.rename(columns=names))
    top = "".join(f'<th scope="col">{escape(name)}</th>' for c, name in names.items() if c not in below.values())
    body = "".join(_row(row, forms, names, below) for row in frame.to_dict("records"))
    return _scroll(f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>")


@dataclass(frozen=True)
class Cell:
    """A cell of a sortable table. value: what it sorts by, its words where it is None; anchor: makes its row a place to
    link to; below: a second line; more: what opens under it; link: an address that its words lead to."""

    words: str
    value: float | None = None
    anchor: str = ""
    below: str = ""
    more: Block = EMPTY
    link: str = ""


def sortable(heads: Mapping[str, str], rows: Sequence[Sequence[Cell]], *, name: str, filter_by: str = "") -> Block:
    """A table whose columns sort and whose rows filter where the page's script runs (page.js); it is whole without.

    heads: what each column is called and means; filter_by: the column whose words can be chosen among.
    """
    files.keep_cells(list(heads), rows, name)
    top = "".join(f'<th scope="col">{term(h, m) if m else escape(h)}</th>' for h, m in heads.items())
    body = "".join(f"<tr{_anchored(row)}>{''.join(map(_sorted_cell, row, heads))}</tr>" for row in rows)
    column = list(heads).index(filter_by) if filter_by else -1
    return _scroll(
        f'<table class="sortable" data-name="{escape(name)}" data-filter="{column}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _anchored(row: Sequence[Cell]) -> str:
    return _at(next((cell.anchor for cell in row if cell.anchor), ""))


def _sorted_cell(cell: Cell, head: str) -> str:
    words = escape(cell.words)
    link = f"#{quote(cell.anchor)}" if cell.anchor else cell.link
    words = f'<a href="{escape(link)}">{words}</a>' if link else words
    below = f'<div class="quiet">{escape(cell.below)}</div>' if cell.below else ""
    value = "" if cell.value is None else ' data-v=""' if math.isnan(cell.value) else f' data-v="{cell.value:.6g}"'
    long = _style(cell.words) if len(cell.words) > LONG else ""
    kind = ' class="key"' if cell.anchor else long if cell.value is None else ' class="short"'
    return f'<td{kind}{value} data-h="{escape(head.rstrip("?"))}">{words}{below}{cell.more.html}</td>'


def _scroll(made: str) -> Block:
    """A table that scrolls sideways where it is wider than the page, by keyboard too."""
    return Block(f'<div class="scroll" tabindex="0" role="region" aria-label="table">{made}</div>')


def findings(found: list[Finding], digits: int = 2) -> Block:
    """Findings as a table: name, value, 95 % interval, n, what it means; below it the names of those not measured.
    digits: of numbers that are no shares, after the point."""
    known, absent = [f for f in found if f.n], [f.name for f in found if not f.n]
    rows = [
        {
            "what": f.name,
            "value": value(f, digits),
            "95 % interval": span(f.interval, form(f, digits)),
            "n": f.n,
            "meaning": f.meaning,
        }
        for f in known
    ]
    quiet = [note(f"Not measured in this run: {', '.join(absent)}.", "quiet")] if absent else []
    return stack(*([table(pd.DataFrame(rows))] if rows else []), *quiet)


def form(finding: Finding, digits: int = 2) -> Callable[[float], str]:
    """How the finding's number reads: shares as percentages, as its sentence has them."""
    return (
        percent
        if finding.name.rpartition("/")[2] in ("frac", "displaced", "accuracy")
        else partial(number, digits=digits)
    )


def value(finding: Finding, digits: int = 2) -> str:
    """The finding's number in the unit of its sentence; a dash where it was looked for and there is none."""
    return "–" if finding.n and math.isnan(finding.value) else form(finding, digits)(finding.value)


def text(label: str, content: object, limit: int = 1200) -> Block:
    """Untrusted text, shown as it is (line breaks kept), clipped when very long."""
    return words(label, escape(clip(str(content).strip("\n"), limit)))


def words(label: str, safe: str) -> Block:
    """Safe HTML of a text beside its label, in the direction that its first letters ask for."""
    kind = "words code" if "```" in safe else "words"
    return Block(
        f'<div class="text"><span class="label">{escape(label)}</span><div class="{kind}" dir="auto">{safe}</div></div>'
    )


def _row(
    row: Mapping[Hashable, object],
    forms: Mapping[str, Callable[[float], str]],
    names: Mapping[Any, str],
    below: Mapping[str, str],
) -> str:
    under = {k: str(row[name]) for k, name in below.items() if name in row}
    shown = {str(k): v for k, v in row.items() if k not in below.values()}
    return f"<tr>{''.join(_cell(v, forms.get(k), names[k], under.get(k, '')) for k, v in shown.items())}</tr>"


def _cell(value: object, form: Callable[..., str] | None, name: str, below: str = "") -> str:
    words = form(value) if form else str(value)
    under = f'<div class="quiet">{escape(below)}</div>' if below else ""
    return f'<td{_style(max(words, below, key=len))} data-h="{escape(name)}">{escape(words)}{under}</td>'


def _style(words: str) -> str:
    """Numbers and intervals stay on one line, sentences get room."""
    return ' class="short"' if len(words) < SHORT else ' class="long"' if len(words) > LONG else ""
