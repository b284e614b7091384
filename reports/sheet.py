"""A contact sheet of made pairs: each clip beside what the model answered on, with question and answers, for the eye.

The perturbed clips are made again from what the pairs' file says of them; where that does not give what was recorded,
it is an error. Text of data and model is escaped.
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from diagnostics.errors import DataError
from diagnostics.files import replace_text
from diagnostics.media import Media
from diagnostics.pairs import PreferencePair, read_pairs
from diagnostics.vision.thumbs import THUMBS
from reports import standalone
from reports.tables import say
from reports.thumbs import strip
from trainers.worlds.asked import Made
from trainers.worlds.video_pairs import perturbed

SHOWN = 24  # pairs on a sheet
STYLE = """section { border-top: 1px solid var(--line); padding: 0.5rem 0 }
.clips { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0 } .id { color: var(--quiet); font-size: 0.85rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: 0.5rem 0 }
dt { color: var(--quiet) } dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap }
mark { background: var(--mark); color: inherit }
"""


def show_made(made: Made, frames: int) -> None:
    """Write the sheet beside the pairs and say where everything is."""
    sheet = write_sheet(made, frames)
    say(made.said(), f"pairs: {made.path}   every row and its reason: {made.path.parent / 'audit.parquet'}")
    say(f"look at them: {sheet}")


def write_sheet(made: Made, frames: int) -> Path:
    """sheet.html beside the pairs: the first pairs, each clip as it is and as it was perturbed. frames: as they were
    made with."""
    pairs = read_pairs(made.path, frames=frames).pairs
    rows = "\n".join(_section(pair) for pair in pairs[:SHOWN])
    shown = f"The first {min(SHOWN, len(pairs))} of {len(pairs)} pairs; of each clip at most {THUMBS} frames."
    path = made.path.with_name("sheet.html")
    body = f"<p>{escape(made.said())}</p><p>{shown}</p>\n{rows}"
    replace_text(path, standalone.page("Contact sheet", body, STYLE))
    return path


def again(pair: PreferencePair) -> Media:
    """The clip that the model answered on, from what was recorded. DataError where that gives another one."""
    made = pair.columns["made"]
    found = perturbed(pair.media[0], made["perturbations"], made["seed"])
    if [*found.view] != made["view"]:
        raise DataError(f"pair_id {pair.pair_id}: its recorded perturbation does not give the recorded clip.")
    return found


def _section(pair: PreferencePair) -> str:
    clips = "".join(strip(medium, "trained on") for medium in pair.media)
    if "view" in pair.columns["made"]:
        other = again(pair)
        clips = strip(pair.media[0], "original, trained on") + strip(other, "; ".join(other.view))
    said = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in _texts(pair).items())
    head = f'<div class="id">{escape(pair.pair_id)}</div>'
    return f'<section>{head}<div class="clips">{clips}</div><dl>{said}</dl></section>'


def _texts(pair: PreferencePair) -> dict[str, str]:
    """What is said of a pair, as safe HTML."""
    columns: Mapping[str, Any] = pair.columns
    made = columns["made"]
    found = {"question": escape(str(pair.prompt))}
    for name, column, side in (("chosen", "answer_masked", pair.chosen), ("rejected", "pred_masked", pair.rejected)):
        text = escape(str(side))
        if columns.get(column):
            text = escape(str(columns[column])).replace("&lt;MASK&gt;", "<mark>").replace("&lt;/MASK&gt;", "</mark>")
        found[name] = text
    more = {"first round": made.get("first"), "hint" if "first" in made else "true answer": made.get("truth")}
    if "points" in made:
        points = ("none" if p is None else f"{p:.0f}" for p in made["points"])
        more["points"] = f"{', '.join(points)} of 100 by {made['metric']}; these two: {columns['preference']:.0f} apart"
    if "share" in made:
        looked = f"{made['share']:.0%} of the images' attention on Image{made['place'] + 1}"
        more["looked"] = f"{looked}; perplexity {made['perplexity']:.2f}"
    return found | {name: escape(text) for name, text in more.items() if text}
