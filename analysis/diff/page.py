"""The sections of the page that holds one run against another on the same pairs."""

import pandas as pd

from analysis.diff import verdict
from analysis.diff.verdict import Compared
from analysis.run import samples
from analysis.run.verdict import PAIRS
from analysis.show import page
from analysis.show.page import Block, Cell, Tile
from analysis.show.units import Unit
from analysis.show.wording import ABSENT, clip, count, signed
from analysis.tables import displacement, runs
from diagnostics.runlog import RunLog

ROWS = 1000  # pairs in the table of a page


def load(before: str, after: str) -> Compared:
    """Read both runs. Raises DataError where one cannot be read, or they share no measured pair."""
    runs.require(before=before, after=after)
    return verdict.compare(runs.load(before), runs.load(after))


def summary(both: Compared, before_page: str = "", after_page: str = "") -> Block:
    """Which runs, the verdict, and four numbers of the probe pairs. before_page, after_page: addresses of the runs' own
    pages, "" where there are none."""
    found, (before, after) = verdict.judge(both), both.names
    kind = {True: "good", False: "bad", None: "unmeasured"}[found[0].passed]
    word = {True: "✔ DISPLACES LESS", False: "✖ DISPLACES MORE", None: "– NOT CLEAR"}[found[0].passed]
    said = page.stack(Block(f'<p class="word">{word}</p>'), page.note(f"{found[0].meaning}.", "says"))
    card = Block(f'<section class="card {kind}" aria-label="Verdict">{said.html}</section>')
    bar = page.links([(f"before: {before}", before_page), (f"after: {after}", after_page)])
    left = verdict.left_out(both)
    once = "Two runs, one seed each: the intervals are over pairs, and say nothing of what another seed would do."
    split = next(iter(both.found))
    tiles = page.tiles([_tile(both, split, what) for what in ("fell", "chosen", "accuracy", "kl")])
    told = [page.note(both.unit.note, "quiet")] if both.unit.note else []
    return page.stack(
        bar, *told, card, tiles, page.note(once, "quiet"), page.note(left, "quiet") if left else page.EMPTY
    )


def _tile(both: Compared, split: str, what: str) -> Tile:
    found, (plain, apart) = verdict.shown(both, split, what), verdict.form(what, both.unit)
    label, meaning = _LABELS[both.unit.kind][what], both.what[what]
    if not found.n:
        return Tile(label, meaning, ABSENT)
    below = f"{plain(found.before)} to {plain(found.after)}", f"n {found.n}, {verdict.interval(found, apart)}"
    return Tile(label, f"{meaning}, of {PAIRS[split]}s: after minus before", apart(found.value), below)


_OF_TOKENS = {
    "fell": "chosen answers that fell: difference", "chosen": "mean change: difference, nats",
    "accuracy": "preference accuracy: difference", "kl": "KL: difference, nats",
}  # fmt: skip
_OF_CHAINS = _OF_TOKENS | {"fell": "chosen chains that fell: difference"}
_OF_ERRORS = _OF_TOKENS | {
    "fell": "chosen errors that rose: difference", "chosen": "mean change of the error: difference",
    "kl": "deviation: difference",
}  # fmt: skip
_LABELS = {"tokens": _OF_TOKENS, "steps": _OF_CHAINS, "denoising": _OF_ERRORS}


def numbers(both: Compared) -> Block:
    """Every number in both runs, and the difference with its interval."""
    rows = []
    for split in both.found:
        for what, words in both.what.items():
            (plain, apart), found = verdict.form(what, both.unit), verdict.shown(both, split, what)
            pair = (plain(found.before), plain(found.after), apart(found.value))
            rows.append((PAIRS[split], words, *pair, verdict.interval(found, apart), found.n))
    columns = ["of", "what", "before", "after", "difference", "interval of the difference", "n"]
    known = pd.DataFrame(rows, columns=columns)
    return page.table(known.loc[known["n"] > 0])


def classes(both: Compared) -> Block:
    """How many pairs of each outcome before have which outcome after."""
    parts = []
    for split, (a, b) in both.pairs.items():
        known = a["outcome"].notna() & b["outcome"].notna()
        if known.tolist().count(True):
            table = pd.crosstab(a.loc[known, "outcome"], b.loc[known, "outcome"])
            names = [o for o in displacement.OUTCOMES if o in table.index or o in table.columns]
            table = table.reindex(index=names, columns=names, fill_value=0).rename(index=both.unit.outcome)
            table.columns = [f"after: {both.unit.outcome(o)}" for o in names]
            parts += [page.heading(f"{PAIRS[split].capitalize()}s")]
            parts += [page.table(table.rename_axis("before").reset_index())]
    return page.stack(*parts)


def changed(both: Compared, text: bool = True) -> Block:
    """The pairs that changed class, the largest loss first, in a table that sorts; text: False leaves their texts
    out."""
    audit = both.after.audit if runs.texts(both.before.audit).empty else both.before.audit
    texts = runs.texts(audit) if text else runs.texts(pd.DataFrame())
    found = {split: verdict.moved(both, split) for split in both.found}
    rows = [
        _row(row, split, texts, both.unit)
        for split, table in found.items()
        for row in table.head(ROWS).to_dict("records")
    ]
    if not rows:
        return page.note("No pair changed class.")
    total = sum(map(len, found.values()))
    said = f"{count(total, 'pair')} changed class, the largest loss first"
    more = f"; {ROWS:,} of a kind are shown" if max(map(len, found.values())) > ROWS else ""
    made = page.sortable(_heads(both), rows, name="pairs", filter_by="after")
    return page.stack(page.note(f"{said}{more}."), page.fold("All of them", made) if len(rows) > samples.OPEN else made)


def _heads(both: Compared) -> dict[str, str]:
    unit = both.unit
    chosen = f"change of the chosen {unit.answer}, nats" if unit.nats else "change of the chosen error"
    return {
        "pair": "", "of": "", "before": "outcome in the run before", "after": "outcome in the run after",
        "chosen before": chosen, "chosen after": chosen,
        "difference": f"after minus before{', nats' if unit.nats else ''}",
    }  # fmt: skip


def _row(row: dict, split: str, texts: pd.DataFrame, unit: Unit) -> list[Cell]:
    body = page.EMPTY
    if row["pair_id"] in texts.index:
        known = texts.loc[row["pair_id"]]
        body = page.fold("read", *(page.text(name, known[name], 600) for name in ("prompt", *runs.SIDES)))
    anchor = f"pair-{row['pair_id']}" if split == "probe" else f"{split}-{row['pair_id']}"
    return [
        Cell(str(row["pair_id"]), None, anchor, more=body),
        Cell(PAIRS[split]),
        *(Cell(unit.outcome(row[name])) for name in ("was", "is")),
        *(
            Cell(signed(value, unit.digits), value)
            for value in (unit.shown(row[k]) for k in ("before", "after", "change"))
        ),
    ]


def settings(both: Compared) -> Block:
    """What was set otherwise, and where each run ended."""
    table = verdict.settings(both)
    shown = table.assign(**{side: [_setting(v) for v in table[side]] for side in ("before", "after")})
    made = page.table(shown) if len(table) else page.note("No setting, hash or version differs.")
    ends = [f"{name} is read at step {_end(log)}" for name, log in zip(both.names, (both.before, both.after))]
    return page.stack(made, page.note(f"{', '.join(ends)}.", "quiet"))


def _setting(value: object) -> str:
    return "not set" if value is None else clip(value, 200)


def _end(log: RunLog) -> str:
    return f"{log.pairs['step'].max():.0f}"
