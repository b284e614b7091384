"""Judge a run: Findings with their sentences, the headline made from them. Thresholds live here."""

import math

import pandas as pd

from analysis import displacement, mass, runs
from analysis.intervals import finite, mean_interval
from analysis.wording import ABSENT, count, number, percent, signed, span, visible
from diagnostics.finding import Finding
from diagnostics.runlog import RunLog

HALF = 0.5
EOS_MOVED = 0.1  # a smaller change is left to the table


def judge(run: RunLog) -> list[Finding]:
    """Every judged number of a run, the verdict first. All from the run log; NaN and n = 0 where it is silent."""
    rows = runs.rows(run, "probe")
    table = displacement.by_step(rows)
    last = rows.loc[rows["step"] == rows["step"].max()] if len(rows) else rows
    share, mean = _share(table), _mean(table)
    others = [_side(last), _accuracy(last), _margin(last), _went_to(run), _eos(run), *_divergences(last)]
    others += [_onset(table, share.n), _parity(run)]
    return [_displaced(table, share, mean, others), share, mean, *others]


def headline(findings: list[Finding]) -> str:
    """The one sentence that says how the run went."""
    return by_name(findings, "displaced").meaning


def by_name(findings: list[Finding], name: str) -> Finding:
    """The finding of that name; an empty one where there is none."""
    empty = Finding(name, math.nan, 0, None, None, None, f"{name}: {ABSENT}")
    return next((f for f in findings if f.name == name), empty)


def _displaced(table: pd.DataFrame, share: Finding, mean: Finding, others: list[Finding]) -> Finding:
    if share.n == 0:
        sentence = "not measured: the run log has no probe pairs with a chosen likelihood"
        return Finding("displaced", math.nan, 0, None, HALF, None, sentence)
    fell = displacement.is_displaced(table.iloc[-1].to_dict())
    parts = [f"{'displaced' if fell else 'not displaced'}: {share.meaning}, {mean.meaning}"]
    parts += [f.meaning for f in others if _worth_saying(f, fell)]
    return Finding("displaced", share.value, share.n, share.interval, HALF, not fell, "; ".join(parts))


def _worth_saying(finding: Finding, fell: bool) -> bool:
    if finding.name == "eos/chosen":
        return fell and abs(finding.value) >= EOS_MOVED
    return finding.n > 0 and (finding.name == "kl/chosen" or (fell and finding.name in ("mass/gained", "onset")))


def _share(table: pd.DataFrame) -> Finding:
    if table.empty:
        return Finding("displacement/frac", math.nan, 0, None, HALF, None, ABSENT)
    last = table.iloc[-1]
    n, interval = int(last["n"]), (float(last["share_low"]), float(last["share_high"]))
    if n < displacement.FEW:
        sentence = f"{round(n * last['share']) if n else 0} of {count(n, 'probe pair')} lost chosen likelihood"
    else:
        sentence = f"{percent(last['share'])} of {count(n, 'probe pair')} lost chosen likelihood"
        sentence += f" (95 % interval {span(interval, percent)})"
    return Finding("displacement/frac", float(last["share"]), n, interval, HALF, None, sentence)


def _mean(table: pd.DataFrame) -> Finding:
    if table.empty:
        return Finding("displacement/chosen", math.nan, 0, None, 0.0, None, ABSENT)
    last = table.iloc[-1]
    interval = (float(last["mean_low"]), float(last["mean_high"]))
    sentence = f"mean {signed(last['mean'])} nats"
    return Finding("displacement/chosen", float(last["mean"]), int(last["n"]), interval, 0.0, None, sentence)


def _of_column(name: str, last: pd.DataFrame, column: str, sentence: str) -> Finding:
    values = finite(runs.column(last, column))
    value = float(values.mean()) if len(values) else math.nan
    return Finding(name, value, len(values), mean_interval(values), None, None, sentence.format(number(value)))


def _side(last: pd.DataFrame) -> Finding:
    return _of_column("displacement/rejected", last, "rejected_change", "rejected responses moved {} nats on average")


def _margin(last: pd.DataFrame) -> Finding:
    return _of_column("margin", last, "margin_change", "the chosen-rejected log-ratio margin is {} nats")


def _accuracy(last: pd.DataFrame) -> Finding:
    margin = runs.column(last, "margin_change")
    correct = (margin > 0).astype(float).where(margin.notna())
    sentence = "the share of pairs whose margin is positive (preference accuracy) is {}"
    return _of_column("accuracy", last.assign(correct=correct), "correct", sentence)


def _divergences(last: pd.DataFrame) -> list[Finding]:
    forward, reverse = "KL(reference || policy)", "KL(policy || reference)"
    found = []
    for side in runs.SIDES:
        for key, suffix, words in (("kl", "kl", forward), ("kl_reverse", "kl_reverse", reverse)):
            short = "KL {} nats per response" if (key, side) == ("kl", "chosen") else None
            sentence = short or f"{words} is {{}} nats per {side} response"
            found.append(_of_column(f"{key}/{side}", last, f"{side}_{suffix}", sentence))
    return found


def _went_to(run: RunLog) -> Finding:
    n, gained = mass.probe_count(run), mass.movers(run.mass)
    if gained.empty:
        return Finding("mass/gained", math.nan, 0, None, None, None, "where the mass went was not measured")
    top = gained.iloc[0]
    worth = gained.loc[gained["mass"] >= top["mass"] / 4].head(3)
    names = [f"{visible(t)} ({signed(m / max(n, 1))})" for t, m in zip(worth["token"], worth["mass"])]
    before, after = mass.first_and_last(mass.ledger(run.mass), "chosen")
    sentence = "at the first token where the responses differ, mass went to " + ", ".join(names)
    sentence += f" per pair, and the chosen one moved by {signed(after - before)}"
    return Finding("mass/gained", float(top["mass"]), max(n, int(top["pairs"])), None, None, None, sentence)


def _eos(run: RunLog) -> Finding:
    """Change of the probability that a chosen response ends where it ends."""
    before, after = mass.first_and_last(mass.eos(run.mass), "chosen_eos")
    n = len(set(mass.of_kind(run.mass, ("chosen_eos",))["pair_id"]))
    sentence = f"EOS at the end of the chosen responses went from {number(before)} to {number(after)}"
    return Finding("eos/chosen", after - before, n, None, None, None, sentence)


def _onset(table: pd.DataFrame, n: int) -> Finding:
    step = displacement.onset(table)
    sentence = "no onset" if math.isnan(step) else f"onset at step {step:.0f}"
    return Finding("onset", step, n, None, None, None, sentence)


def _parity(run: RunLog) -> Finding:
    parity = run.manifest.get("parity") or {}
    noise, largest = (_float(parity.get(key)) for key in ("noise_floor", "max_difference"))
    sentence = f"policy and reference differ by at most {number(largest)} nats at step 0"
    n = int(parity.get("n") or 0)
    passed = parity.get("passed")
    return Finding("parity", largest, n, None, None if math.isnan(noise) else noise, passed, sentence)


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
