"""Judge a board: who displaced, how far each moved, what the published comparisons come to. Thresholds live here."""

import math
from dataclasses import dataclass

from analysis.compare import board as tables
from analysis.compare.board import Board
from analysis.show.wording import count, number, percent, span
from analysis.tables.intervals import finite, geometric_mean, half_width, mean, share_interval
from diagnostics.finding import Finding

HALF = 0.5
DISPLACED, HELD, UNCLEAR = "displaced", "did not displace", "unclear"
Entry = tuple[str, float]


@dataclass(frozen=True)
class Judged:
    """One entry's displacement: share of training pairs that lost chosen likelihood, mean over seeds, with its 95 %
    interval over seeds and pairs (intervals.share_interval)."""

    entry: Entry
    share: float
    interval: tuple[float, float]
    seeds: int

    @property
    def state(self) -> str | None:
        """displaced: the 95 % interval of the share lies above one half; did not: below it; else unclear; None where
        nothing was measured."""
        if math.isnan(self.share):
            return None
        if self.interval[0] > HALF:
            return DISPLACED
        return HELD if self.interval[1] < HALF else UNCLEAR

    @property
    def words(self) -> str:
        """The share with its interval."""
        return f"{percent(self.share)}, {span(self.interval, percent)}"


def judge(board: Board) -> list[Judged]:
    """Every entry, in the board's order."""
    found = []
    for entry in board.entries:
        rows = board.of(entry)
        shares = rows["probe_fell"]
        found.append(Judged(entry, mean(shares), share_interval(shares, rows["probe_n"]), len(finite(shares))))
    return found


def headline(board: Board) -> str:
    """How many entries displaced, did not, or are unclear, with their names."""
    found = judge(board)
    parts = []
    for state in (DISPLACED, HELD, UNCLEAR):
        names = [entry_name(board, j.entry) for j in found if j.state == state]
        if names:
            parts.append(f"{len(names)} {_is(state)}" + ("" if board.several_rates else f" ({', '.join(names)})"))
    what = "objectives (each learning rate counts apart)" if board.several_rates else "objectives"
    said = "; ".join(parts) or "displacement was not measured"
    return f"Of {len(found)} {what}, over {count(board.seeds, 'seed')}: {said}"


def displacement_sentences(board: Board) -> list[str]:
    """One sentence a learning rate: who displaced, who did not, where it is unclear."""
    found = judge(board)
    sentences = []
    for rate in dict.fromkeys(j.entry[1] for j in found):
        here = [j for j in found if j.entry[1] == rate]
        said = []
        for state in (DISPLACED, HELD, UNCLEAR):
            names = ", ".join(f"{j.entry[0]} ({j.words})" for j in here if j.state == state)
            said += [f"{state}: {names}"] if names else []
        sentences.append(f"At learning rate {rate:g}, " + "; ".join(said or ["not measured"]) + ".")
    return sentences


def ratio_sentences(board: Board) -> list[str]:
    """The KL comparisons that the entries allow: DPO against RRPO, and RRPO's KL term without and with its phrases."""
    return [f"{words}: {'; '.join(f.meaning for f in found)}." for words, found in _ratios(board) if found]


def findings(board: Board) -> list[Finding]:
    """Everything judged, for report.json: the headline, each entry's displacement and KL, the KL ratios."""
    found = judge(board)
    kl_ratios = [f for _, ratios in _ratios(board) for f in ratios]
    first = Finding("board", math.nan, board.seeds, None, HALF, None, headline(board))
    return [first, *(_displacement(board, j) for j in found), *(_kl(board, j.entry) for j in found), *kl_ratios]


def entry_name(board: Board, entry: Entry) -> str:
    """The entry's label, with its learning rate where the board has several."""
    return f"{entry[0]} at {entry[1]:g}" if board.several_rates else entry[0]


_COMPARED = (
    ("dpo", "rrpo", "Held-out KL of DPO over that of RRPO with alpha 0.01"),
    ("dpo", "rrpo:alpha=0.1", "Held-out KL of DPO over that of RRPO with alpha 0.1"),
    ("rrpo:phrases=false", "rrpo", "The KL term alone, without phrases, over RRPO with alpha 0.01, held-out KL"),
    (
        "rrpo:alpha=0.1:phrases=false",
        "rrpo:alpha=0.1",
        "The KL term alone, without phrases, over RRPO with alpha 0.1, held-out KL",
    ),
)


def _ratios(board: Board) -> list[tuple[str, list[Finding]]]:
    """Each comparison's words and its ratio at every learning rate that both entries have."""
    known = set(board.entries)
    rates = list(dict.fromkeys(rate for _, rate in board.entries))
    return [
        (words, [_ratio(board, above, below, r) for r in rates if {(above, r), (below, r)} <= known])
        for above, below, words in _COMPARED
    ]


def _ratio(board: Board, above: str, below: str, rate: float) -> Finding:
    """The ratio's geometric mean over seeds, and their range."""
    values = tables.ratios(board, "eval_kl", (above, rate), (below, rate))
    values = values[values > 0]
    name = f"kl ratio/{entry_name(board, (above, rate))}/{below}"
    if not len(values):
        return Finding(name, math.nan, 0, None, None, None, "not measured")
    middle, low, high = geometric_mean(values), float(values.min()), float(values.max())
    over = f"geometric mean of {len(values)} seeds, {number(low)} to {number(high)}" if len(values) > 1 else "one seed"
    at = f" at learning rate {rate:g}" if board.several_rates else ""
    return Finding(name, middle, len(values), (low, high), None, None, f"{number(middle)}{at} ({over})")


def _displacement(board: Board, judged: Judged) -> Finding:
    name = entry_name(board, judged.entry)
    if judged.state is None:
        return Finding(f"displaced/{name}", math.nan, 0, None, HALF, None, f"{name}: displacement not measured")
    passed = {DISPLACED: False, HELD: True}.get(judged.state)
    said = f"{name}: {percent(judged.share)} of the training pairs {board.unit.lost} "
    said += f"(95 % interval {span(judged.interval, percent)}); {judged.state}"
    return Finding(f"displaced/{name}", judged.share, judged.seeds, judged.interval, HALF, passed, said)


def _kl(board: Board, entry: Entry) -> Finding:
    values = board.of(entry)["eval_kl"]
    value, half, name = mean(values), half_width(values), entry_name(board, entry)
    interval = None if math.isnan(half) else (value - half, value + half)
    unit = board.unit
    said = f"{name}: {unit.divergences['kl']} is {number(value)}{unit.nats} per held-out chosen {unit.response}"
    said = f"{name}: KL on held-out chosen responses not measured" if math.isnan(value) else said
    return Finding(f"kl/{name}", value, len(finite(values)), interval, None, None, said)


def _is(state: str) -> str:
    return {UNCLEAR: "are unclear"}.get(state, state)
