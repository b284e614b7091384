"""What differs between two runs on the same pairs, as Findings: `before` is the run that `after` is held against."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from analysis.run.verdict import PAIRS
from analysis.show import units
from analysis.show.units import Unit
from analysis.show.wording import count, number, percent, signed, span
from analysis.tables import displacement, paired
from analysis.tables.intervals import NOTHING
from analysis.tables.paired import Difference
from diagnostics import outcomes
from diagnostics.finding import Finding
from diagnostics.runlog import RunLog

SHARES = ("fell", "accuracy")
TURNED = ("chosen", "rejected")  # of a denoiser shown as the change of its error
WHAT = ("fell", "chosen", "per_token", "accuracy", "kl", "rejected", "margin")
_WHAT = {
    "fell": "share of chosen answers that fell", "chosen": "mean change of a chosen answer, nats",
    "per_token": "mean change per token of a chosen answer, nats",
    "accuracy": "preference accuracy", "kl": "KL(reference || policy) per chosen answer, nats",
    "rejected": "mean change of a rejected answer, nats", "margin": "mean change of the margin, nats",
}  # fmt: skip
_OF_CHAINS = {name: words.replace("answer", "chain") for name, words in _WHAT.items() if name != "per_token"}
_OF_ERRORS = {
    "fell": "share of chosen samples whose error rose", "chosen": "mean change of the chosen error",
    "accuracy": "preference accuracy", "kl": "deviation from the reference on a chosen sample",
    "rejected": "mean change of the rejected error", "margin": "mean change of the margin, rejected over chosen error",
}  # fmt: skip
_WORDS = {"tokens": _WHAT, "steps": _OF_CHAINS, "denoising": _OF_ERRORS}
MORE, LESS, MIXED, SAME, FEW = "more", "less", "mixed", "same", "few"


@dataclass(frozen=True)
class Compared:
    """Two runs, and what differs on the pairs that both measured. found: by split and name of WHAT."""

    before: RunLog
    after: RunLog
    found: dict[str, dict[str, Difference]]
    pairs: dict[str, tuple[pd.DataFrame, pd.DataFrame]]

    @property
    def unit(self) -> Unit:
        """What the likelihoods of both are counted in."""
        return units.of(self.after)

    @property
    def what(self) -> dict[str, str]:
        """What is compared, in words, by its names in WHAT."""
        return _WORDS[self.unit.kind]

    @property
    def names(self) -> tuple[str, str]:
        """The two runs' names, told apart."""
        return paired.names(self.before, self.after)


def compare(before: RunLog, after: RunLog) -> Compared:
    """Every difference of the two runs. Raises DataError where they share no measured pair."""
    paired.require_shared(before, after)
    pairs = {split: paired.shared(before, after, split) for split in PAIRS}
    found = {split: _differences(a, b) for split, (a, b) in pairs.items() if len(a)}
    return Compared(before, after, found, pairs)


def _differences(a: pd.DataFrame, b: pd.DataFrame) -> dict[str, Difference]:
    return {what: paired.difference(pd.Series(a[what]), pd.Series(b[what])) for what in WHAT}


def state(both: Compared, split: str) -> str:
    """Whether the second run displaces MORE or LESS on these pairs: the interval of the difference of the shares that
    fell does not hold 0, or that of the mean changes lies wholly beyond the least movement; MIXED where they disagree,
    SAME where neither says so, FEW with fewer than five pairs, of which there is no interval worth the name."""
    share, mean = both.found[split]["fell"], both.found[split]["chosen"]
    if share.n < displacement.FEW:
        return FEW
    (low, high), least = mean.interval, paired.noise(both.before, both.after)
    more = share.interval[0] > 0 or outcomes.fell(high, least) == 1
    less = share.interval[1] < 0 or outcomes.rose(low, least) == 1
    return MIXED if more and less else MORE if more else LESS if less else SAME


def judge(both: Compared) -> list[Finding]:
    """The verdict first, then every difference. passed: False where the second run displaces more on probe or held-out
    pairs, True where it does so on neither and less on one, else None; None too where a run that has not finished is
    read at an earlier step than the other, for less training displaces less."""
    states = {split: state(both, split) for split in both.found}
    kinds = set(states.values())
    passed = False if MORE in kinds else True if LESS in kinds and MIXED not in kinds else None
    unlike, early = paired.unlike_steps(both.before, both.after)
    passed = None if early else passed
    main = both.found[next(iter(both.found))]["fell"]
    said = "; ".join([*(_said(both, split, states[split]) for split in both.found), *([unlike] if unlike else [])])
    first = Finding("difference", main.value, main.n, main.interval, 0.0, passed, said)
    of = [(split, what) for split in both.found for what in both.what if both.found[split][what].n]
    return [first, *(_finding(both, split, what) for split, what in of)]


def shown(both: Compared, split: str, what: str) -> Difference:
    """A difference as the unit shows it: of a denoiser that of the errors."""
    found, unit = both.found[split][what], both.unit
    if what not in TURNED or unit.sign > 0:
        return found
    ends = unit.interval(found.interval) or NOTHING
    before, after, value = (unit.shown(v) for v in (found.before, found.after, found.value))
    return Difference(before, after, value, found.n, ends)


def _said(both: Compared, split: str, found: str) -> str:
    share, mean, unit = both.found[split]["fell"], shown(both, split, "chosen"), both.unit
    reads, _ = form("chosen", unit)
    return (
        f"{_words(both, split, found)}: {percent(share.before)} to {percent(share.after)} of the chosen {unit.went} "
        f"({_points(share)}), {unit.mean_change} {reads(mean.before)} to {reads(mean.after)}{unit.nats} "
        f"({reads(mean.value)}; {interval(mean, reads)})"
    )


def _words(both: Compared, split: str, found: str) -> str:
    before, after = both.names
    words = {
        MORE: f"{after} displaces more than {before}", LESS: f"{after} displaces less than {before}",
        MIXED: f"{after} and {before} differ both ways (share that fell against mean change)",
        SAME: f"no difference in displacement between {after} and {before} can be told",
        FEW: f"too few pairs to tell {after} from {before}",
    }[found]  # fmt: skip
    return f"{words} on {count(both.found[split]['fell'].n, PAIRS[split])}"


def _points(share: Difference) -> str:
    return f"{points(share.value)}; {interval(share, points)}"


def points(value: float) -> str:
    """A difference of two shares in percentage points."""
    return f"{signed(100 * value, 0)} points" if value == value else number(value)


def interval(found: Difference, form: Callable[[float], str] = signed) -> str:
    """The 95 % interval in words; that there is none where the differences do not vary."""
    if found.n < displacement.FEW or any(v != v for v in found.interval):
        return span(NOTHING)
    return f"95 %: {span(found.interval, form).replace(' points', '')}"


def form(what: str, unit: Unit) -> tuple[Callable[[float], str], Callable[[float], str]]:
    """How a number of WHAT reads, and how a difference of it does."""
    plain, apart = (partial(reads, digits=unit.digits) for reads in (number, signed))
    return (percent, points) if what in SHARES else (plain if what == "kl" else apart, apart)


def _finding(both: Compared, split: str, what: str) -> Finding:
    """Its numbers are of likelihoods, its sentence in the unit of the runs."""
    (plain, apart), found, turned = form(what, both.unit), both.found[split][what], shown(both, split, what)
    said = f"{both.what[what]}, {PAIRS[split]}s: {plain(turned.before)} to {plain(turned.after)} "
    said += f"({apart(turned.value)}; {interval(turned, apart)})"
    return Finding(f"{split}/difference/{what}", found.value, found.n, found.interval, None, None, said)


def moved(both: Compared, split: str) -> pd.DataFrame:
    """The pairs whose outcome differs between the runs, the largest loss first: pair_id, was, is, before, after, change
    (difference of the chosen changes, nats)."""
    a, b = both.pairs[split]
    table = pd.DataFrame({"was": a["outcome"], "is": b["outcome"], "before": a["chosen"], "after": b["chosen"]})
    table = table.assign(change=table["after"] - table["before"]).dropna(subset=["was", "is"])
    table = table.loc[table["was"] != table["is"]].rename_axis("pair_id").reset_index()
    return table.sort_values(["change", "pair_id"], ignore_index=True)


def crossed(both: Compared, split: str) -> tuple[int, int]:
    """How many pairs' chosen answers fell in the second run alone, and in the first alone."""
    a, b = (pd.Series(table["fell"]) for table in both.pairs[split])
    return _both(a == 0, b == 1), _both(a == 1, b == 0)


def _both(one: pd.Series, other: pd.Series) -> int:
    return (one & other).tolist().count(True)


QUIET = ("output_dir", "resume", "command", "run_name", "board_label")


def settings(both: Compared) -> pd.DataFrame:
    """setting, and its value in each run, of those that differ: config.json, then hashes and versions."""
    rows = []
    for part, one, other in _parts(both):
        keys = [k for k in dict.fromkeys([*one, *other]) if k not in QUIET and one.get(k) != other.get(k)]
        rows += [(f"{part}{k}", one.get(k), other.get(k)) for k in keys]
    return pd.DataFrame(rows, columns=["setting", "before", "after"], dtype=object)


def _parts(both: Compared) -> list[tuple[str, dict, dict]]:
    a, b = both.before, both.after
    about = [("hash of ", "hashes"), ("version of ", "versions")]
    return [("", a.config, b.config), *((w, a.manifest.get(k) or {}, b.manifest.get(k) or {}) for w, k in about)]


def left_out(both: Compared) -> str:
    """What was not compared: pairs of one run alone, and ids that stand for other texts; "" where all was."""
    said = []
    for split, (a, _) in both.pairs.items():
        alone = [len(paired.ends(log, split)) - len(a) for log in (both.before, both.after)]
        if any(alone):
            said.append(f"{PAIRS[split]}s that only one of the runs measured: {alone[0]} and {alone[1]}")
    other = paired.other_texts(both.before, both.after)
    if other:
        said.append(f"{count(len(other), 'id')} of both runs that stand for different texts are left out")
    return "; ".join(said)


def markdown(both: Compared) -> list[str]:
    """Five lines for a pull request, not escaped."""
    sign = {True: "✅", False: "⚠️", None: "ℹ️"}[judge(both)[0].passed]
    said = "; ".join(_words(both, split, state(both, split)) for split in both.found)
    said += f"; {unlike}" if (unlike := paired.unlike_steps(both.before, both.after)[0]) else ""
    lines = [f"{sign} {said}.", *(_line(both, split) for split in PAIRS)]
    worse, better = (sum(k) for k in zip(*(crossed(both, split) for split in both.found)))
    lines.append(both.unit.crossed.format(worse, better))
    changed = [f"{r['setting']} {r['before']} → {r['after']}" for r in settings(both).to_dict("records")]
    rest = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    return [*lines, f"Settings that differ: {', '.join(changed[:4])}{rest}." if changed else "No setting differs."]


def _line(both: Compared, split: str) -> str:
    found = both.found.get(split)
    if not found:
        return f"{PAIRS[split].capitalize()}s: none measured in both runs."
    parts = []
    for what, words in (_SHORT if both.unit.sign > 0 else _SHORT_ERRORS).items():
        if what not in both.what:
            continue
        (plain, apart), one = form(what, both.unit), shown(both, split, what)
        told = f" ({apart(one.value)}; {interval(one, apart)})" if what in ("fell", "chosen") else ""
        parts += [f"{words} {plain(one.before)} → {plain(one.after)}{told}"] if one.n else []
    return f"{PAIRS[split].capitalize()}s (n {found['fell'].n}): {', '.join(parts)}."


_SHORT = {"fell": "fell", "chosen": "chosen", "per_token": "per token", "accuracy": "accuracy", "kl": "KL"}
_SHORT_ERRORS = {"fell": "rose", "chosen": "chosen error", "accuracy": "accuracy", "kl": "deviation"}
