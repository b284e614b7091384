"""Judge a run: Findings with their sentences, the headline made from them. Thresholds live here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from analysis.show import units
from analysis.show.units import Unit
from analysis.show.wording import ABSENT, count, number, percent, signed, span, visible
from analysis.tables import displacement, mass, runs
from analysis.tables.displacement import DISPLACED, HELD, UNCLEAR
from analysis.tables.intervals import finite, mean_interval, wilson
from diagnostics import outcomes
from diagnostics.finding import Finding
from diagnostics.runlog import RunLog

HALF = 0.5
EOS_MOVED = 0.1  # a smaller change is left to the table
FEW_MOVED = 0.01  # where a smaller share of the weights moved, the verdict says how few
PAIRS = {"probe": "probe pair", "eval": "held-out pair"}
WORDS = {DISPLACED: "displaced", HELD: "not displaced", UNCLEAR: "not clear whether displaced"}
PASSED = {DISPLACED: False, HELD: True, UNCLEAR: None}


def judge(run: RunLog) -> list[Finding]:
    """Every judged number of a run, the verdict first. All from the run log; NaN and n = 0 where it is silent.

    The verdict is about the probe pairs and about the held-out pairs, each judged apart: passed is False where either
    are displaced, True where neither are, None where that is not clear, and where the run could not displace anything:
    no weight moved, no log-prob moved, or nothing was measured after the start.
    """
    unit, rows = units.of(run), {split: _after_start(runs.rows(run, split)) for split in PAIRS}
    tables = {split: displacement.by_step(found) for split, found in rows.items()}
    last = {split: _last(found) for split, found in rows.items()}
    starts = {split: runs.start(found) for split, found in last.items()}
    shares = {split: _share(split, tables[split], unit) for split in PAIRS}
    means = {split: _mean(split, tables[split], starts[split], unit) for split in PAIRS}
    probe = last["probe"]
    others = [_side(probe, unit), _accuracy(probe), _margin(probe, unit), _went_to(run), _eos(run)]
    others += _divergences(probe, unit)
    others += [_onset(tables["probe"], shares["probe"].n), _parity(run), _weights(run)]
    said = _unmeasured(run, shares["probe"].n) or _no_effect(run, last)
    if said:
        first = Finding("displaced", shares["probe"].value, shares["probe"].n, None, HALF, None, said)
    else:
        first = _displaced(_states(tables), shares, means, others)
    return [first, *(f for split in PAIRS for f in (shares[split], means[split])), *others]


def states(run: RunLog) -> dict[str, str]:
    """DISPLACED, HELD or UNCLEAR for the probe pairs and for the held-out ones, where any was measured."""
    return _states({split: displacement.by_step(_after_start(runs.rows(run, split))) for split in PAIRS})


def _states(tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    return {split: displacement.state(table) for split, table in tables.items() if len(table) and table.iloc[-1]["n"]}


def measured(run: RunLog) -> bool:
    """Whether any probe pair was measured after the start: without one there is nothing to say of a run."""
    return bool(runs.column(_after_start(runs.rows(run, "probe")), "chosen_change").notna().any())


def shown(run: RunLog, findings: list[Finding]) -> list[Finding]:
    """The findings that this kind of run has."""
    return findings if units.of(run).by_token else [f for f in findings if f.name not in _OF_TOKENS]


# what a denoiser does not have: tokens, and a divergence that differs by direction
_OF_TOKENS = ("mass/gained", "eos/chosen", "kl_reverse/chosen", "kl_reverse/rejected")


def headline(findings: Sequence[Finding]) -> str:
    """The one sentence that says how the run went."""
    return by_name(findings, "displaced").meaning


def by_name(findings: Sequence[Finding], name: str) -> Finding:
    """The finding of that name; an empty one where there is none."""
    empty = Finding(name, math.nan, 0, None, None, None, f"{name}: {ABSENT}")
    return next((f for f in findings if f.name == name), empty)


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[rows["step"] == rows["step"].max()] if len(rows) else rows


def _after_start(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows measured after the start, where nothing has moved yet."""
    return rows.loc[rows["step"] > 0]


def _unmeasured(run: RunLog, n: int) -> str:
    """Why there is no verdict: no probe pairs, or none measured after the start; empty where n of them were."""
    if n:
        return ""
    go_on = _GO_ON.get(str(run.config.get("command")), _GO_ON["train"])
    if not runs.column(runs.rows(run, "probe"), "chosen_change").notna().any():
        go_on = go_on if run.pairs.empty else "Train with probe_every and probe_pairs set"
        return f"not measured: the log has no probe pairs with a chosen likelihood. {go_on}"
    end = int(runs.column(run.steps, "step").to_numpy().max()) if len(run.steps) else 0
    of = f" of {planned:,}" if (planned := runs.planned(run)) else ""
    where = f"at step {end}{of}, before the first measurement after the start" if end else "at its start"
    return f"not measured: the log ends {where}, so no pair can be judged. {go_on}"


_GO_ON = {
    "train": "To go on, give the same command again with --resume auto",
    "trace": "Trace a later checkpoint too",
    "callback": "Train further, or resume the trainer from its checkpoint with the same `out`",
}


def _no_effect(run: RunLog, last: Mapping[str, pd.DataFrame]) -> str:
    """Why the run could not displace anything: no weight moved, or no log-prob did; empty where something moved."""
    if no_weight_moved(run):
        rate = ", for the learning rate was 0 throughout" if _rate(run) == 0 else ""
        return f"no effect: no weight moved{rate}; the run says nothing about displacement"
    measured = {split: rows for split, rows in last.items() if len(rows)}
    if not all(_still(rows) for rows in measured.values()):
        return ""
    least = float(outcomes.least(runs.noise(run)))
    counts = " and ".join(count(len(rows), PAIRS[split]) for split, rows in measured.items())
    unit = units.of(run)
    moved = f"no {unit.quantity} of {counts} changed by more than {least:.2g}{unit.nats}"
    return f"nothing moved measurably: {moved}{_few(run)}"


def no_weight_moved(run: RunLog) -> bool:
    """Whether training left every weight as it was: as the manifest says, else by a learning rate of 0 throughout."""
    share = _moved(run)[0]
    return _rate(run) == 0 if math.isnan(share) else share == 0


def _still(rows: pd.DataFrame) -> bool:
    """Whether every change of these rows was measured and none is a movement (see outcomes)."""
    changes = [runs.column(rows, f"{side}_change") for side in runs.SIDES]
    moves = [f(change, runs.column(rows, "noise")) for change in changes for f in (outcomes.fell, outcomes.rose)]
    return all(bool((move == 0).all()) for move in moves)


def _rate(run: RunLog) -> float:
    """The largest learning rate of the log; NaN where it holds none."""
    return float(runs.column(run.steps, "learning_rate").max()) if len(run.steps) else math.nan


def _moved(run: RunLog) -> tuple[float, int]:
    """Share of the trained weights that moved, and how many there are; NaN where the run did not look."""
    found = run.manifest.get("weights_moved")
    found = found if isinstance(found, dict) else {}
    share, n = _float(found.get("share")), _float(found.get("n"))
    return share, 0 if math.isnan(n) else int(n)


def _few(run: RunLog) -> str:
    """How few weights moved; empty where it was not few, or the run did not look."""
    finding = _weights(run)
    return f"; {finding.meaning}" if finding.n and finding.value < FEW_MOVED else ""


def _displaced(
    states: Mapping[str, str], shares: Mapping[str, Finding], means: Mapping[str, Finding], others: list[Finding]
) -> Finding:
    parts = [f"{shares[split].meaning}, {means[split].meaning}" for split in states]
    fell = states["probe"] == DISPLACED
    parts += [f.meaning for f in others if _worth_saying(f, fell)]
    passed = {PASSED[state] for state in states.values()}
    overall = False if False in passed else None if None in passed else True
    share = shares["probe"]
    said = f"{_state_words(states)}: {'; '.join(parts)}"
    return Finding("displaced", share.value, share.n, share.interval, HALF, overall, said)


def _state_words(states: Mapping[str, str]) -> str:
    """`displaced`, or where probe and held-out pairs differ, both, the displaced ones first."""
    if len(set(states.values())) == 1:
        return WORDS[states["probe"]]
    order = sorted(states, key=lambda split: states[split] != DISPLACED)
    return ", ".join(f"{WORDS[states[split]]} on {PAIRS[split]}s" for split in order)


def _worth_saying(finding: Finding, fell: bool) -> bool:
    if finding.name == "eos/chosen":
        return fell and abs(finding.value) >= EOS_MOVED
    if finding.name == "parity":
        return finding.passed is False
    if finding.name == "weights_moved":
        return finding.n > 0 and finding.value < FEW_MOVED
    return finding.n > 0 and (finding.name == "kl/chosen" or (fell and finding.name in ("mass/gained", "onset")))


def key(split: str, name: str) -> str:
    """A finding's name on one split: that of the probe pairs has no prefix."""
    return name if split == "probe" else f"{split}/{name}"


def _share(split: str, table: pd.DataFrame, unit: Unit) -> Finding:
    name, pairs = key(split, "displacement/frac"), PAIRS[split]
    last: Any = table.iloc[-1] if len(table) else {"n": 0}
    n = int(last["n"])
    if not n:
        return Finding(name, math.nan, 0, None, HALF, None, f"{pairs}s that {unit.lost}: {ABSENT}")
    interval = (float(last["share_low"]), float(last["share_high"]))
    if n < displacement.FEW:
        sentence = f"{round(n * last['share'])} of {count(n, pairs)} {unit.lost}"
    else:
        sentence = f"{percent(last['share'])} of {count(n, pairs)} {unit.lost}"
        sentence += f" (95 % interval {span(interval, percent)})"
    return Finding(name, float(last["share"]), n, interval, HALF, None, sentence)


def _mean(split: str, table: pd.DataFrame, start: float, unit: Unit) -> Finding:
    name = key(split, "displacement/chosen")
    last: Any = table.iloc[-1] if len(table) else {"n": 0}
    n = int(last["n"])
    if not n:
        return Finding(name, math.nan, 0, None, 0.0, None, f"mean change of {PAIRS[split]}s: {ABSENT}")
    interval = (float(last["mean_low"]), float(last["mean_high"]))
    return Finding(name, float(last["mean"]), n, interval, 0.0, None, f"{unit.mean} {unit.told(last['mean'], start)}")


def _of_column(
    name: str, last: pd.DataFrame, column: str, what: str, sentence: str, form: Callable[[float], str] = number
) -> Finding:
    """The mean of a column. what: its name in words, said where nothing was measured; sentence: with {} for it."""
    values = finite(runs.column(last, column))
    if not len(values):
        return Finding(name, math.nan, 0, None, None, None, f"{what}: {ABSENT}")
    value = float(values.mean())
    return Finding(name, value, len(values), mean_interval(values), None, None, sentence.format(form(value)))


def _side(last: pd.DataFrame, unit: Unit) -> Finding:
    what, form = f"movement of rejected {unit.response}s", lambda value: number(unit.shown(value), unit.digits)
    return _of_column("displacement/rejected", last, "rejected_change", what, unit.side, form)


def _margin(last: pd.DataFrame, unit: Unit) -> Finding:
    return _of_column(
        "margin",
        last,
        "margin_change",
        "chosen-rejected log-ratio margin",
        unit.margin,
        partial(number, digits=unit.digits),
    )


def _accuracy(last: pd.DataFrame) -> Finding:
    margin = runs.column(last, "margin_change")
    correct = (margin > 0).astype(float).where(margin.notna())
    what = "preference accuracy"
    sentence = "the margin is positive (preference accuracy) in {} of pairs"
    found = _of_column("accuracy", last.assign(correct=correct), "correct", what, sentence, percent)
    return replace(found, interval=wilson(int(correct.sum()), found.n)) if found.n else found


def _divergences(last: pd.DataFrame, unit: Unit) -> list[Finding]:
    found = []
    for side in runs.SIDES:
        for key, words in unit.divergences.items():
            sentence = f"{words} {{}}{unit.nats} per {side} {unit.response}"
            what = f"{words} on {side} {unit.response}s"
            form = partial(number, digits=unit.digits)
            found.append(_of_column(f"{key}/{side}", last, f"{side}_{key}", what, sentence, form))
    return found


def _went_to(run: RunLog) -> Finding:
    """Where the mass went, per pair. value: the largest gain of a token, mean over the pairs followed."""
    n, gained = mass.probe_count(run), mass.movers(run.mass)
    if gained.empty:
        return Finding("mass/gained", math.nan, 0, None, None, None, f"where the mass went: {ABSENT}")
    top: Any = gained.iloc[0]
    n = max(n, *(int(k) for k in gained["pairs"]))
    worth = gained.loc[gained["mass"] >= top["mass"] / 4].head(3)
    names = [f"{visible(t)} ({signed(m / n)})" for t, m in zip(worth["token"], worth["mass"])]
    before, after = mass.first_and_last(mass.ledger(run.mass), "chosen")
    sentence = "at the first token where the responses differ, mass went to " + ", ".join(names) + " per pair"
    if not math.isnan(after - before):
        sentence += f", and the chosen one moved by {signed(after - before)}"
    return Finding("mass/gained", float(top["mass"]) / n, n, None, None, None, sentence)


def _eos(run: RunLog) -> Finding:
    """Change of the probability that a chosen response ends where it ends."""
    table = mass.eos(run.mass)
    before, after = mass.first_and_last(table, "chosen_eos")
    n = len(set(mass.of_kind(run.mass, ("chosen_eos",))["pair_id"]))
    if not n or len(table) < 2 or math.isnan(after - before):
        return Finding("eos/chosen", math.nan, 0, None, None, None, f"EOS at the end of the chosen responses: {ABSENT}")
    sentence = f"EOS at the end of the chosen responses went from {number(before)} to {number(after)}"
    return Finding("eos/chosen", after - before, n, None, None, None, sentence)


def _onset(table: pd.DataFrame, n: int) -> Finding:
    step = displacement.onset(table)
    sentence = f"onset: {ABSENT}" if not n else "no onset" if math.isnan(step) else f"onset at step {step:.0f}"
    return Finding("onset", step, n, None, None, None, sentence)


def _weights(run: RunLog) -> Finding:
    """How many of the trained weights training changed at all: at a small learning rate 16-bit weights stay."""
    share, n = _moved(run)
    if math.isnan(share) or not n:
        return Finding("weights_moved", math.nan, 0, None, None, None, f"weights that moved: {ABSENT}")
    moved = round(share * n)
    sentence = f"{'only ' if share < FEW_MOVED else ''}{moved:,} of {count(n, 'weight')} compared moved"
    return Finding("weights_moved", share, n, None, None, None, sentence)


def _parity(run: RunLog) -> Finding:
    """As the run measured it before its first step; else, where another model was its reference, from the probe."""
    parity: Any = run.manifest.get("parity") or _apart(runs.rows(run, "probe"))
    noise, largest = (_float(parity.get(key)) for key in ("noise_floor", "max_difference"))
    n = int(_float(parity.get("n") or 0))
    sentence = f"policy and reference differ by at most {number(largest)}{units.of(run).nats} at step 0"
    if largest == 0:
        sentence = "policy and reference give the same log-probs at step 0"
    if math.isnan(largest):
        sentence = f"difference of policy and reference at step 0: {ABSENT}"
    passed = parity.get("passed")
    if passed is False:
        sentence += ": the reference is not the model that training began from"
    return Finding("parity", largest, n, None, None if math.isnan(noise) else noise, passed, sentence)


def _apart(rows: pd.DataFrame) -> dict[str, Any]:
    """How far the chosen log-probs of policy and reference lay apart at step 0; empty where either was not measured."""
    start = rows.loc[rows["step"] == 0]
    gap = (runs.column(start, "chosen_logps") - runs.column(start, "ref_chosen_logps")).abs().dropna()
    if gap.empty:
        return {}
    return {"max_difference": float(gap.max()), "n": len(gap), "passed": bool(gap.max() <= outcomes.least())}


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan
