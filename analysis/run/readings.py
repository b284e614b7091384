"""What the curves of a run say, in one sentence each: judged here, measured in curves, mass and displacement."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from analysis.show.units import Unit
from analysis.show.wording import ABSENT, count, percent, signed, span
from analysis.tables.curves import Change
from analysis.tables.displacement import FEW, MonotoneFall
from analysis.tables.first_difference import Profile
from analysis.tables.intervals import wilson
from analysis.tables.mass import RESPONSES

STEADY = 0.01  # a mean change of less (nats a token, or probability) counts as steady even where it is certain
FEWEST_POINTS = 3  # of fewer measurements none is called the highest
FEW_SAID = "there are fewer than five pairs, too few to say"


def direction(mean: float, interval: tuple[float, float], n: int) -> int:
    """-1 fell, 1 rose, 0 no clear change: the interval must leave out 0, the mean reach STEADY, n be 5 or more.

    Without an interval five rows or more have all moved by the same, which is clear.
    """
    if n < FEW or math.isnan(mean) or abs(mean) < STEADY:
        return 0
    if math.isnan(interval[0]):
        return -1 if mean < 0 else 1
    return -1 if interval[1] < 0 else 1 if interval[0] > 0 else 0


def frames(table: pd.DataFrame) -> str:
    """Whether the chosen answers depend on what the pairs show, at the last step, and how much less than at the start.
    table: frames.by_view."""
    grey = table.loc[(table["side"] == "chosen") & (table["view"] == "grey")]
    first, last = grey.iloc[0], grey.iloc[-1]
    n = int(last["n"])
    moved = f", {signed(first['lost'])} at the start" if first["step"] != last["step"] else ""
    numbers = (
        f" Against grey frames the pairs' own add {signed(last['lost'])} nats to a chosen answer "
        f"({span((last['low'], last['high']), signed)}{moved}; {count(n, 'pair')})."
    )
    if n < FEW:
        return f"No reading: {FEW_SAID}." + numbers
    seen = direction(last["lost"], (last["low"], last["high"]), n)
    return _SEEN[seen] + numbers


_SEEN = {
    1: "Yes: the chosen answers are likelier with their frames than without.",
    0: "Not clearly: the chosen answers are about as likely with grey frames as with their own.",
    -1: "Against them: the chosen answers are less likely with their frames than with grey ones.",
}


def spread(likelihood: Change, entropy: Change, mass: Change) -> str:
    """Whether the likelihood that chosen responses lost is a harm, by H_k and M_k (read-out of arXiv 2410.11677)."""
    if not (likelihood.n and mass.n and entropy.n):
        return f"Top-k entropy and mass: {ABSENT}."
    numbers = (
        f" Chosen responses: log-likelihood {_moved(likelihood)} nats per token, top-k entropy {_moved(entropy)} nats, "
        f"top-k mass {_moved(mass)} ({count(mass.n, 'pair')})."
    )
    if mass.n < FEW:
        return f"No reading: {FEW_SAID}." + numbers
    return _read(*(direction(c.mean, c.interval, c.n) for c in (likelihood, entropy, mass))) + numbers


def _read(likelihood: int, entropy: int, mass: int) -> str:
    """A loss is explained only where there is one: without it no word of harm is said."""
    if likelihood >= 0:
        return "No loss to explain: the chosen responses did not clearly lose likelihood per token."
    if mass < 0:
        more = " What is left there is narrower too." if entropy < 0 else ""
        return "Leak: the likely tokens lost mass to the tail of the vocabulary." + more
    if entropy < 0:
        return "Collapse: the policy grew sure of few tokens, and the tail did not clearly gain."
    if entropy > 0:
        return "Benign so far: the likely tokens did not clearly lose mass, and they are more even now."
    return "Unclear: the chosen responses lost likelihood, but entropy did not move clearly, nor did mass fall."


def responses(table: pd.DataFrame) -> str:
    """Who fell, who rose, at the last step; and whether that is squeezing. table: mass.responses."""
    last = table.loc[(table["step"] == table["step"].max()) & (table["n"] > 0) & table["change"].notna()]
    if last.empty:
        return f"Response types: {ABSENT} at the last step."
    moves = {r["name"]: direction(r["change"], (r["low"], r["high"]), r["n"]) for r in last.to_dict("records")}
    changes = dict(zip(last["name"], last["change"]))
    groups = {"fell": -1, "rose": 1, "no clear change": 0}
    said = [_group(words, [t for t in moves if moves[t] == sign], changes) for words, sign in groups.items()]
    listed = "; ".join(words for words in said if words)
    n = int(last["n"].min())
    sentence = f"{listed[:1].upper()}{listed[1:]} (nats per token, {count(n, 'pair')})."
    if n < FEW:
        return f"No reading: {FEW_SAID}. {sentence}"
    rest = [move for name, move in moves.items() if name != "own"]
    squeezed = moves.get("own") == 1 and len(rest) > 1 and all(move < 0 for move in rest)
    return ("Squeezing: everything fell but what the model would have said anyway. " if squeezed else "") + sentence


def _group(words: str, names: list[str], changes: dict[str, float]) -> str:
    return f"{words}: " + ", ".join(f"{RESPONSES[t]} {signed(changes[t])}" for t in names) if names else ""


def frontier(table: pd.DataFrame, pairs: str, distance: str) -> str:
    """Where accuracy is highest and where the run ends. table: curves.frontier; pairs: which pairs, in words; distance:
    what the distance from the reference is called."""
    points = table.to_dict("records")
    best, last = max(points, key=lambda point: point["accuracy"]), points[-1]
    whose = f"Preference accuracy on {count(int(last['n']), pairs)}"
    if len(points) < FEWEST_POINTS:
        return f"{whose} is {_point(last, distance)}."
    if best["accuracy"] == last["accuracy"]:
        return f"{whose} ends at its highest: {_point(last, distance)}."
    return f"{whose} is highest at {_point(best, distance)}; it ends at {_point(last, distance)}."


def _point(row: Mapping[Hashable, Any], distance: str) -> str:
    interval = span((row["accuracy_low"], row["accuracy_high"]), percent)
    at = f"at step {row['step']:.0f}, {distance} {row['deviation']:.2f}"
    return f"{percent(row['accuracy'])} ({interval}) {at}"


def monotone_fall(fall: MonotoneFall, unit: Unit, pairs: str = "probe pair") -> str:
    """How steadily the fallen kept falling."""
    if math.isnan(fall.first):
        return f"{unit.monotone}: not measured; it takes two measurements after the start."
    if not fall.n:
        return f"{unit.monotone}: no chosen {unit.erring} by step {fall.first:.0f}."
    again, lower = (
        f"{percent(hits / fall.n)} (95 % interval {span(wilson(hits, fall.n), percent)})"
        for hits in (fall.again, fall.lower)
    )
    later = count(fall.checks, "later measurement")
    return (
        f"{unit.monotone}: of {count(fall.n, pairs)} whose chosen {unit.erring} by step {fall.first:.0f}, "
        f"{again} {unit.fallen} again at every one of the {later}; at the end, step {fall.last:.0f}, "
        f"{lower} are {'lower' if unit.sign > 0 else 'higher'} than they were then."
    )


def first_difference(found: Profile) -> str:
    """Whether the tokens of the chosen answers lose at the first difference or after it (arXiv 2402.13228)."""
    numbers = "; ".join(
        f"{words} {_moved(part)} in {count(part.n, 'pair')}"
        for words, part in (("before it", found.before), ("at it", found.at), ("after it", found.after))
        if part.n
    )
    said = f"Chosen answers, nats per token around the first differing token: {numbers or ABSENT}."
    if found.lead.n < FEW:
        return f"No reading: {FEW_SAID}. {said}"
    at, after, lead = (direction(c.mean, c.interval, c.n) for c in (found.at, found.after, found.lead))
    return f"{_dip(at, after, lead)} {said}{_deepest(found.table)}"


def _deepest(table: pd.DataFrame) -> str:
    chosen = table.loc[(table["side"] == "chosen") & (table["place"] >= 0)].sort_values("mean")
    if chosen.empty or not chosen["mean"].iloc[0] < 0:
        return ""
    row: Any = chosen.iloc[0]
    found = Change(int(row["n"]), row["mean"], (row["low"], row["high"]))
    return f" The deepest single place is {row['place']}: {_moved(found)} in {count(found.n, 'pair')}."


def _dip(at: int, after: int, lead: int) -> str:
    if at >= 0 and after >= 0:
        return "No dip: the chosen answers did not clearly lose at their first differing token nor after it."
    if at < 0 and lead < 0:
        sits = "The first differing token fell further than those after it on average."
        return sits + (" The tokens after it fell too." if after < 0 else "")
    if after < 0 and lead > 0:
        return "The tokens after the first differing one fell further than it." + (
            " That token fell too." if at < 0 else ""
        )
    return "The chosen answers lost there, but whether more at their first differing token or after it is not clear."


def push(table: pd.DataFrame) -> str:
    """In how many pairs the rejected answer drives nearly everything. table: entanglement.push_by_step."""
    ends = [_pushed(row) for row in table.iloc[[0, -1]].to_dict("records")]
    said = ends[0] if len(table) == 1 else f"{ends[0]}; {ends[1]}"
    return f"Rejected probability pushed over 100 times harder than the chosen one: {said}."


def _pushed(row: Mapping[Hashable, Any]) -> str:
    share = f"{percent(row['share'])} of {count(int(row['n']), 'pair')}"
    interval = span((row["share_low"], row["share_high"]), percent)
    mean = f"{signed(row['mean'])} nats ({span((row['low'], row['high']), signed)})"
    return f"at step {row['step']:.0f} in {share} (95 % interval {interval}), mean log ratio {mean}"


def _moved(change: Change) -> str:
    return f"{signed(change.mean)} ({span(change.interval, signed)})"
