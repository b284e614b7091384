"""Pieces of a report page: everything untrusted is escaped here, once."""

import base64
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

import pandas as pd
from matplotlib.figure import Figure

from analysis.show.wording import clip, number, percent, span
from diagnostics.finding import Finding


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


def heading(words: str) -> Block:
    """A small heading."""
    return Block(f"<h3>{escape(words)}</h3>")


def card(head: str, *blocks: Block) -> Block:
    """A framed box with a heading: one pair."""
    return Block(f'<div class="pair">{note(head, "head").html}{stack(*blocks).html}</div>')


def missing(what: str, why: str) -> Block:
    """Says plainly that a section has nothing to show, and why."""
    return note(f"{what}: not measured. {why}", "quiet")


def picture(figure: Figure, alt: str) -> Block:
    """A figure as an image inside the page; `alt` says in words what it shows."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    width = round(102 * figure.get_figwidth())  # the same size of letters in every figure
    return Block(f'<img class="figure" width="{width}" alt="{escape(alt)}" src="data:image/png;base64,{data}">')


def table(
    frame: pd.DataFrame,
    forms: Mapping[str, Callable[[float], str]] | None = None,
    heads: Mapping[str, str] | None = None,
) -> Block:
    """A table. forms: how the numbers of a column read; heads: what a column is called. All cells are escaped."""
    forms, heads = forms or {}, heads or {}
    top = "".join(f"<th>{escape(heads.get(c, str(c)))}</th>" for c in frame.columns)
    body = "".join(_row(row, forms) for row in frame.to_dict("records"))
    return Block(f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>')


def findings(found: list[Finding]) -> Block:
    """Findings as a table: name, value, 95 % interval, n, what it means; below it the names of those not measured."""
    known, absent = [f for f in found if f.n], [f.name for f in found if not f.n]
    rows = [
        {"what": f.name, "value": value(f), "95 % interval": span(f.interval, form(f)), "n": f.n, "meaning": f.meaning}
        for f in known
    ]
    quiet = [note(f"Not measured in this run: {', '.join(absent)}.", "quiet")] if absent else []
    return stack(*([table(pd.DataFrame(rows))] if rows else []), *quiet)


def form(finding: Finding) -> Callable[[float], str]:
    """How the finding's number reads: shares as percentages, as its sentence has them."""
    return percent if finding.name.rpartition("/")[2] in ("frac", "displaced", "accuracy") else number


def value(finding: Finding) -> str:
    """The finding's number in the unit of its sentence; a dash where it was looked for and there is none."""
    return "–" if finding.n and math.isnan(finding.value) else form(finding)(finding.value)


def text(label: str, content: object, limit: int = 1200) -> Block:
    """Untrusted text, shown as it is (line breaks kept), clipped when very long."""
    words = escape(clip(str(content).strip("\n"), limit))
    return Block(f'<div class="text"><span class="label">{escape(label)}</span><div class="words">{words}</div></div>')


def _row(row: Mapping[str, object], forms: Mapping[str, Callable[[float], str]]) -> str:
    return "<tr>" + "".join(_cell(v, forms.get(str(k))) for k, v in row.items()) + "</tr>"


def _cell(value: object, form: Callable[..., str] | None) -> str:
    words = form(value) if form else str(value)
    # numbers and intervals stay on one line, sentences get room
    style = ' class="short"' if len(words) < 24 else ' class="long"' if len(words) > 60 else ""
    return f"<td{style}>{escape(words)}</td>"
