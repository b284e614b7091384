"""The runs of a report in one table, the worst first."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from analysis.run import card, kept
from analysis.run.verdict import by_name
from analysis.show import page, units
from analysis.show.page import Block, Cell
from analysis.show.wording import ABSENT, count, number, percent, signed, span
from analysis.tables import displacement, runs
from diagnostics.finding import Finding
from diagnostics.runlog import RunLog

_HEADS = {
    "run": "", "verdict": "", "objective": "",
    "fell": "share of the probe pairs whose chosen answer became less likely, with its 95 % interval",
    "held out": "the same share of the held-out pairs",
    "change": "of the chosen answers, mean, nats; of denoisers of the error, which has no unit: above 0 is worse",
    "KL": "KL(reference || policy) on the chosen answers, nats; of denoisers the deviation",
    "onset": "the step from which on it is displaced",
    "by step": "share of the pairs that fell, from 0 to 100 %",
}  # fmt: skip
SEED = ("seed", "data_seed", "output_dir", "resume", "report_to")
_ORDER = (card.BROKEN, card.WATCH, card.UNMEASURED, card.NORMAL)


def table(logs: Sequence[RunLog], addresses: Mapping[str, str]) -> Block:
    """One line a run, runs that differ in their seed alone in one. addresses: of the pages, by the runs' folders."""
    groups: dict[str, list[list[Cell]]] = {}
    seeds: set[tuple[str, str]] = set()
    for run in logs:
        key, seed = _but_seed(run), str(run.config.get("seed"))
        key = run.name if (key, seed) in seeds else key  # the same run twice is no other seed
        seeds.add((key, seed))
        groups.setdefault(key, []).append(_row(run, addresses.get(str(run.path), "")))
    rows = sorted((_folded(sorted(group, key=_worst)) for group in groups.values()), key=_worst)
    return page.sortable(_HEADS, rows, name="runs", filter_by="verdict")


def _but_seed(run: RunLog) -> str:
    """What runs share that differ in nothing but their seed and where they lie."""
    return json.dumps({k: v for k, v in run.config.items() if k not in SEED}, sort_keys=True, default=str)


def _worst(row: Sequence[Cell]) -> tuple[float, ...]:
    """By verdict, then by the share that fell, then by how far."""
    share, change = (value if (value := row[k].value) and not math.isnan(value) else 0.0 for k in (3, 5))
    return row[1].value or 0.0, -share, change


def _folded(rows: list[list[Cell]]) -> list[Cell]:
    """The worst of runs that differ in their seed alone; the others open under its name."""
    first, *others = rows
    if not others:
        return first
    lines = [page.links([(row[0].words, row[0].link), (f"{row[1].words}, {row[3].words} fell", "")]) for row in others]
    more = page.fold(f"and {len(others)} of other seeds", *lines)
    return [replace(first[0], more=more), *first[1:]]


def each(logs: Sequence[RunLog], said: Sequence[Mapping[str, str]], pages: Mapping[str, str]) -> Block:
    """One line a run, in words: its name, with a link to its own page, then what is said of it, the same of each; below
    them the command for a page of those that have none. pages: addresses of the pages by the runs' folders."""
    heads = {"run": "", **dict.fromkeys(said[0] if said else (), "")}
    cells = [Cell(log.name, link=pages.get(str(log.path), "")) for log in logs]
    table = page.sortable(heads, [[cell, *map(Cell, of.values())] for cell, of in zip(cells, said)], name="runs")
    without = [log for log in logs if not pages.get(str(log.path))]
    places = dict.fromkeys(str(log.path.parent) for log in without)
    commands = [page.command(f"chesboard report {shlex.quote(place)}/RUN") for place in places]
    note = page.note(f"Of {count(len(without), 'run')} without a link no page was made; this makes one:", "quiet")
    return page.stack(table, *([note, *commands] if without else []))


def counts(logs: Sequence[RunLog]) -> str:
    """How many runs are broken, to be watched, normal and not measured, in words."""
    words = [card.state(run, kept.verdict_of(run)).word for run in logs]
    return ", ".join(f"{words.count(word)} {word}" for word in _ORDER if word in words)


def _row(run: RunLog, address: str) -> list[Cell]:
    found, unit = kept.verdict_of(run), units.of(run)
    word = card.state(run, found).word
    names = ("displacement/frac", "eval/displacement/frac", "displacement/chosen", "kl/chosen", "onset")
    share, held, change, kl, onset = (by_name(found, name) for name in names)
    return [
        Cell(run.name, link=address),
        Cell(f"{card.SIGNS[word]} {word}", _ORDER.index(word)),
        Cell(str(run.config.get("objective", ABSENT))),
        *(_share(finding) for finding in (share, held)),
        Cell(signed(unit.shown(change.value), unit.digits) if change.n else ABSENT, change.value),
        Cell(number(kl.value, unit.digits) if kl.n else ABSENT, kl.value),
        Cell("none" if math.isnan(onset.value) else f"step {onset.value:.0f}", onset.value),
        Cell("", more=spark(displacement.by_step(runs.rows(run, "probe")))),
    ]


def _share(finding: Finding) -> Cell:
    below = f"{span(finding.interval, percent)}, n {finding.n}" if finding.n else ""
    return Cell(percent(finding.value), finding.value, below=below)


def spark(by_step: pd.DataFrame) -> Block:
    """A small line of the share that fell over the steps. by_step: displacement.by_step."""
    shares = by_step.dropna(subset=["share"]) if len(by_step) else by_step
    if len(shares) < 2:
        return page.EMPTY
    last = float(shares["step"].to_numpy().max()) or 1.0
    places = zip(shares["step"], shares["share"])
    points = " ".join(f"{98 * step / last + 1:.1f},{23 - 22 * share:.1f}" for step, share in places)
    told = f"from {percent(shares['share'].iloc[0])} to {percent(shares['share'].iloc[-1])}"
    return Block(
        f'<svg class="spark" viewBox="0 0 100 24" role="img" aria-label="{told}">'
        f'<polyline points="{points}" fill="none" stroke="currentcolor" stroke-width="1.5"/></svg>'
    )
