"""The pairs of a run: the worst ones token by token, then all of them in a table that sorts, filters and links."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

import pandas as pd

from analysis.run import card, flagged, samples, verdict
from analysis.run.card import State
from analysis.run.flagged import Flagged
from analysis.run.samples import ANCHORS, ROWS
from analysis.show import page, units
from analysis.show.page import Block, Cell
from analysis.show.wording import ABSENT, clip, number, ordinal, signed, visible
from analysis.tables import pair_table, runs, tokens
from analysis.tables.runs import Pictures
from diagnostics.runlog import RunLog

FULL = 0.65  # opacity of the colour of a token at the end of the scale
MOST = 400  # tokens of an answer shown with their colours


def section(run: RunLog, worst: int, *, text: bool = True, flags: Mapping[str, str] | None = None) -> Block:
    """The cards of the worst pairs (of those held out, where only they are displaced), the legend of their colours, and
    the tables. text: False leaves all texts out; flags: score folders reported beside it, with their pages'
    addresses."""
    first = "eval" if card.displaced(run) == ("eval",) else "probe"
    table = pair_table.of_run(run, first)
    other = pair_table.of_run(run, "probe") if first == "eval" else pair_table.of_run(run, "eval")
    texts = runs.texts(runs.audits(run) if text else pd.DataFrame())
    fallen = table.loc[table["fell"] == 1, "pair_id"].head(worst).tolist()
    if units.of(run) is units.ERRORS:
        return samples.pairs(run, table, other, texts, len(fallen), first, text=text)
    full = pair_table.scale(run, fallen) if text else math.nan
    before = flagged.of(run, flags or {})
    said = [] if fallen else [page.note(f"No {verdict.PAIRS[first]}'s chosen {units.of(run).answer} lost likelihood.")]
    listed = [i for some in (table, other) for i in some["pair_id"].head(ROWS)]
    shown = runs.pictures(run.path, listed) if text else Pictures()
    places = _places(runs.column(table, "ches_score"))
    carded = table.head(len(fallen)).to_dict("records") if text else []
    cards = [_card(run, row, texts, full, shown, first, place) for row, place in zip(carded, places)]
    return page.stack(
        *said,
        *([_legend(full)] if cards and full == full else []),
        *cards,
        _table(run, table, texts, shown, first, before),
        _table(run, other, texts, shown, "eval" if first == "probe" else "probe", before),
        *page.not_shown(shown),
    )


def _legend(full: float) -> Block:
    words = (
        f"Colour and line of a token say how its log-prob moved: orange over dots fell, blue over a line rose, full "
        f"colour from {number(full)} nats on (the 95th percentile of this page)."
    )
    return Block(
        f'<p class="quiet legend"><span class="fell" style="--s:{FULL}">fell</span> '
        f'<span class="rose" style="--s:{FULL}">rose</span> {escape(words)}</p>'
    )


def _card(
    run: RunLog, row: dict[Any, Any], texts: pd.DataFrame, full: float, pictures: Pictures, split: str, place: str
) -> Block:
    known = row["pair_id"] in texts.index
    text = texts.loc[row["pair_id"]] if known else dict.fromkeys(("prompt", *runs.SIDES), "(not in the audit table)")
    token, ches = f" ({signed(row['per_token'])} a token)", ""
    if row["ches_score"] == row["ches_score"]:
        ches = f"; CHES {number(row['ches_score'])} ({place})"
    if not units.of(run).by_token:
        token = ches = ""
    moved = f"chosen {signed(row['chosen'])} nats{token}, rejected {signed(row['rejected'])}"
    head = f"{_place(run, row, split)}: {moved}{ches}"
    found = {side: pair_table.whole_characters(tokens.losses(run, row["pair_id"], side)) for side in runs.SIDES}
    sides = [_answer(side, found[side], str(text[side]), full) for side in runs.SIDES]
    own = page.shown(pictures, row["pair_id"])
    return page.card(head, page.text("prompt", text["prompt"]), *own, *sides, _numbers(found))


def _answer(side: str, table: pd.DataFrame, text: str, full: float) -> Block:
    if table.empty:
        return page.text(side, text)
    spans = "".join(_token(t, full) for t in table.head(MOST).to_dict("records"))
    rest = f"… ({len(table) - MOST} more)" if len(table) > MOST else ""
    return page.words(side, spans + rest)


def _token(row: dict[Any, Any], full: float) -> str:
    """One token with its colour and its second mark; its numbers stand in the table below the card too."""
    change = row["change"]
    if change != change:
        return escape(shown(row["token"]))
    strength = FULL * min(1.0, abs(change) / full) if full > 0 else 0.0
    kind = "fell" if change < 0 else "rose"
    told = f"{number(row['before'])} to {number(row['after'])} nats ({signed(change)})"
    words = escape(shown(row["token"]))
    return f'<span class="{kind}" style="--s:{strength:.2f}" title="{escape(told)}">{words}</span>'


def shown(token: str) -> str:
    """A token as it stands in its answer: its spaces and line breaks kept, what cannot be seen spelled out, but for
    what joins characters within one."""
    words = visible(token)[1:-1].replace("⏎", "⏎\n") or "∅"
    return words if len(token) == 1 else words.replace("\\u200d", "\u200d").replace("\\u200c", "\u200c")


def _numbers(found: dict[str, pd.DataFrame]) -> Block:
    rows = [
        {"answer": side, "token": visible(t["token"])} | {k: t[k] for k in ("before", "after", "change")}
        for side, table in found.items()
        for t in table.head(MOST).to_dict("records")
    ]
    if not rows:
        return page.EMPTY
    made = page.table(pd.DataFrame(rows), {"before": number, "after": number, "change": signed})
    return page.fold("Numbers of every token (nats)", made)


def _table(
    run: RunLog, table: pd.DataFrame, texts: pd.DataFrame, pictures: Pictures, split: str, before: Flagged | None
) -> Block:
    if table.empty:
        return page.EMPTY
    known = before.head if before else _PLACE
    rows = [_row(row, texts, pictures, ANCHORS[split], before) for row in table.head(ROWS).to_dict("records")]
    heads = _HEADS | known | {"tokens": "chosen / rejected"}
    if not units.of(run).by_token:
        kept = [i for i, name in enumerate(heads) if name in _OF_CHAINS]
        heads, rows = _OF_CHAINS, [[row[i] for i in kept] for row in rows]
    return samples.every(heads, rows, len(table), split, "which lost less")


_HEADS = {
    "pair": "", "outcome": "", "chosen": "change of the chosen answer, nats",
    "per token": "of the chosen answer, nats per token", "rejected": "change of the rejected answer, nats",
    "KL": "KL(reference || policy) on the chosen answer, nats", "CHES": "before training; high is prone",
}  # fmt: skip
_OF_CHAINS = {
    "pair": "", "outcome": "", "chosen": "change of the chosen chain, nats",
    "rejected": "change of the rejected chain, nats", "KL": "KL of both models' Gaussians on the chosen chain, nats",
}  # fmt: skip
_PLACE = {"LN-CHES place": "1: the pair that length-normalised CHES calls most prone, which flag would put first"}


def _row(row: dict[Any, Any], texts: pd.DataFrame, pictures: Pictures, kind: str, before: Flagged | None) -> list[Cell]:
    source = row["source_row"]
    anchor = f"{kind}-{row['pair_id']}"
    where = f"row {source}" if source >= 0 else ""
    body = page.EMPTY
    if row["pair_id"] in texts.index:
        text = texts.loc[row["pair_id"]]
        said = (page.text(name, text[name], 600) for name in ("prompt", *runs.SIDES))
        body = page.fold("read", *page.shown(pictures, row["pair_id"]), *said)
    place = Cell("" if row["place"] != row["place"] else f"{row['place']:.0f}", row["place"])
    lengths = " / ".join(ABSENT if n != n else f"{n:.0f}" for n in (row["chosen_length"], row["rejected_length"]))
    return [
        Cell(str(row["pair_id"]), source, anchor, where, body),
        Cell(str(row["outcome"]) if isinstance(row["outcome"], str) else "not measured"),
        *(Cell(signed(row[c]), row[c]) for c in ("chosen", "per_token", "rejected")),
        Cell(number(row["kl"]), row["kl"]),
        Cell(number(row["ches_score"]), row["ches_score"]),
        before.cell(str(row["pair_id"])) if before else place,
        Cell(lengths, row["chosen_length"]),
    ]


def _place(run: RunLog, row: dict[Any, Any], split: str) -> str:
    if row["source_row"] < 0:
        return f"Pair {row['pair_id']}"
    data = run.config.get({"eval": "heldout_data", "probe": "probe_data"}[split]) or run.config.get("data")
    of = f" of {str(data).rstrip('/').rpartition('/')[2]}" if data else ""
    return f"Pair {row['pair_id']} (row {row['source_row']}{of})"


def _places(scores: pd.Series) -> list[str]:
    """The place of each among all that were measured, 1 the highest, in words."""
    ranks, n = scores.rank(ascending=False, method="min"), int(scores.notna().sum())
    return ["" if rank != rank else f"{ordinal(int(rank))} highest of {n}" for rank in ranks]


def most_lost(run: RunLog, state: State, most: int = 3) -> str:
    """Which pairs lost most, in a line of links to their rows, of the split that the page shows first; safe HTML."""
    if state.cause in ("unmeasured", "nothing", "still"):
        return "Not measured." if state.cause == "unmeasured" else "None: nothing moved."
    split, unit = card.shown_split(run), units.of(run)
    table = pair_table.of_run(run, split)
    fallen = table.loc[table["fell"] == 1]
    if fallen.empty:
        return f"No {verdict.PAIRS[split]}'s chosen {unit.answer} {unit.fallen}."
    named = [
        f'<a href="#{quote(f"{ANCHORS[split]}-{pair_id}")}">{escape(clip(pair_id, 24))}</a> '
        f"({escape(signed(unit.shown(change), unit.digits))})"
        for pair_id, change in zip(fallen["pair_id"].head(most).astype(str), fallen["chosen"])
    ]
    return f"Most {unit.nats.strip() or 'error'} {'lost' if unit.sign > 0 else 'gained'}: {', '.join(named)}."
