"""The verdict card: broken or not in one word, with a plain sentence. What to do next stands in advice.py."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis.run import verdict
from analysis.run.verdict import PAIRS, by_name
from analysis.show import units
from analysis.show.wording import ABSENT, percent, signed, span, visible
from analysis.tables import displacement, mass, runs
from analysis.tables.intervals import wilson
from diagnostics import outcomes
from diagnostics.finding import Finding
from diagnostics.runlog import RunLog

BROKEN, WATCH, NORMAL, UNMEASURED = "BROKEN", "WATCH", "NORMAL", "NOT MEASURED"
SIGNS = {BROKEN: "✖", WATCH: "▲", NORMAL: "✔", UNMEASURED: "–"}

SAID = 0.1  # tokens that gained less probability on average do not stand for the answers


@dataclass(frozen=True)
class State:
    """What is wrong with a run, if anything, as the card and the advice read it. displaced: the splits that are."""

    word: str
    says: str
    displaced: tuple[str, ...] = ()
    cause: str = ""


def state(run: RunLog, found: Sequence[Finding]) -> State:
    """The word, the sentence and their cause. found: verdict.judge of the run.

    BROKEN: nothing was trained, or nothing that can be measured; the loss is no number; or chosen answers are displaced
    by at least the limit of the run's unit on average (analysis.show.units). WATCH: displaced by less, not clear,
    nothing moved measurably so far, the wrong answers are preferred, the policy is far from its reference (by that
    unit's limit), or the reference is not the model that training began from, which may be meant. NORMAL: none of
    these.
    """
    first, loss = found[0], runs.column(run.steps, "loss").dropna()
    if not by_name(found, "displacement/frac").n and not verdict.no_weight_moved(run):
        why = first.meaning.removeprefix("not measured: ").partition(". ")[0]
        return State(UNMEASURED, _sentence(why), cause="unmeasured")
    if verdict.no_weight_moved(run):
        return State(BROKEN, f"This run trained nothing. {_sentence(first.meaning)}", cause="nothing")
    if len(loss) and not math.isfinite(float(loss.iloc[-1])):
        return State(BROKEN, f"The loss is no longer a number at step {int(run.steps['step'].iloc[-1])}.", cause="loss")
    moved, parity = _moved(run, found), by_name(found, "parity")
    if parity.passed is not False:
        return moved
    word = WATCH if moved.word == NORMAL else moved.word
    return replace(moved, word=word, says=f"{moved.says} {_sentence(parity.meaning)}")


def _moved(run: RunLog, found: Sequence[Finding]) -> State:
    """The state of a run in which something could move."""
    first = found[0]
    said = counts(run, found)
    if first.passed is False:
        splits = displaced(run)
        unit = units.of(run)
        word = BROKEN if any(unit.broken(_mean(found, split), start(run, split)) for split in splits) else WATCH
        return State(word, said, splits, "displaced")
    if first.passed is None and first.meaning.startswith("nothing moved"):
        ended = bool(run.manifest.get("finished"))
        words = f"This run trained nothing that can be measured. {_sentence(first.meaning)}"
        return State(BROKEN, words, cause="still") if ended else State(WATCH, _sentence(first.meaning), cause="still")
    if first.passed is None:
        return State(WATCH, f"{said} Whether that is displacement is not clear.", cause="unclear")
    return _held(run, found, counts(run, found))


def _held(run: RunLog, found: Sequence[Finding], said: str) -> State:
    """The state of a run whose chosen answers held."""
    accuracy, kl = by_name(found, "accuracy"), by_name(found, "kl/chosen")
    unit = units.of(run)
    said += _not_carried_over(run)
    if accuracy.interval and accuracy.interval[1] < verdict.HALF:
        words = (
            f"{said} But the model prefers the rejected {unit.answer} in {percent(1 - accuracy.value)} of the pairs."
        )
        return State(WATCH, words, cause="accuracy")
    if kl.n and unit.far(kl.value, start(run, "probe")):
        words = f"{said} But the policy is far from its reference: {unit.away(kl.value, start(run, 'probe'))}."
        return State(WATCH, words, cause="far")
    return State(NORMAL, said, cause="held")


def heldout_accuracy(run: RunLog) -> tuple[float, int, tuple[float, float]]:
    """Preference accuracy on held-out pairs at the end, their number, and the 95 % interval; NaN and 0 without any."""
    rows = runs.rows(run, "eval")
    margin = runs.column(runs.ends(rows.loc[rows["step"] > 0]), "margin_change").dropna()
    hits, n = int((margin > 0).sum()), len(margin)
    return (hits / n if n else math.nan), n, wilson(hits, n)


def carried_over(run: RunLog) -> bool:
    """Whether the preference was clearly learned for held-out pairs, or there are none."""
    _, n, interval = heldout_accuracy(run)
    return not n or interval[0] > verdict.HALF


def _not_carried_over(run: RunLog) -> str:
    """Says so where the preference was not clearly learned for held-out pairs."""
    accuracy, n, interval = heldout_accuracy(run)
    if carried_over(run):
        return ""
    told = f"{percent(accuracy)} of {n}, 95 %: {span(interval, percent)}"
    return f" But on held-out pairs the preference is not clearly learned (accuracy {told})."


def displaced(run: RunLog) -> tuple[str, ...]:
    """The splits, probe and eval, that are displaced at the end."""
    return tuple(split for split, state in verdict.states(run).items() if state == verdict.DISPLACED)


def counts(run: RunLog, found: Sequence[Finding]) -> str:
    """How many chosen answers became less likely, of the pairs trained on and of those held out, the worse first."""
    shares = {split: by_name(found, verdict.key(split, "displacement/frac")) for split in PAIRS}
    measured = [split for split in PAIRS if shares[split].n]
    order = sorted(measured, key=lambda split: split not in displaced(run))
    unit, means = units.of(run), {split: _mean(found, split) for split in order}
    told = {split: unit.told(means[split], start(run, split)) for split in order}
    said = [_count(shares[s], f"chosen {unit.answer}s of {PAIRS[s]}s {unit.fell}", told[s]) for s in order[:1]]
    said += [f"Of {PAIRS[s]}s: {_count(shares[s], '', told[s])}" for s in order[1:]]
    return " ".join(f"{words}." for words in said)


def _count(share: Finding, who_fell: str, mean: str) -> str:
    hits = round(share.value * share.n)
    who = f"All {share.n}" if hits == share.n else f"None of {share.n}" if not hits else f"{hits} of {share.n}"
    who = f"{who} {who_fell}" if who_fell else f"{who[:1].lower()}{who[1:]}"
    interval = span(share.interval, percent).replace(" %", "", 1) if share.n >= 5 else ""
    told = f" (95 %: {interval})" if interval else ""
    return f"{who}{told}, {mean} on average"


def shown_split(run: RunLog) -> str:
    """The split that a page shows first: that of the held-out pairs where they alone are displaced, else of the probe
    pairs."""
    return "eval" if displaced(run) == ("eval",) else "probe"


def fired(run: RunLog, found: Sequence[Finding]) -> str:
    """Which test says that the split shown first is displaced; empty where none does, or where fewer than five pairs
    left it to the plain numbers."""
    split = shown_split(run)
    share, mean = (by_name(found, verdict.key(split, f"displacement/{name}")) for name in ("frac", "chosen"))
    if split not in displaced(run) or share.interval is None or mean.interval is None or share.n < displacement.FEW:
        return ""
    if share.interval[0] > verdict.HALF:
        return "Displaced by the share: its interval lies above one half."
    unit, least = units.of(run), float(outcomes.least(runs.noise(run)))
    ends, limit = span(unit.interval(mean.interval), signed), signed(unit.shown(-least))
    where = "below" if unit.sign > 0 else "above"
    return f"Displaced by the mean: its interval, {ends}{unit.nats}, lies wholly {where} {limit}."


def went_to(run: RunLog, state: State) -> str:
    """Where the mass went, in a line: which tokens now stand where the two answers part, of the split shown first.
    Empty for a denoiser, which has no tokens."""
    if not units.of(run).by_token:
        return ""
    if state.cause in ("nothing", "still"):
        return "Nowhere: nothing moved."
    split = shown_split(run)
    n, gained = mass.probe_count(run, split), mass.movers(run.mass, split=split)
    if state.cause == "unmeasured" or not n or not run.mass["step"].to_numpy().any():
        return f"{ABSENT.capitalize()}."
    gains = gained["mass"] / n
    if gained.empty or gains.iloc[0] < SAID:
        most = f"; most {visible(gained['token'].iloc[0])}, {signed(gains.iloc[0])}" if len(gains) else ""
        return f"No token gained {SAID:g} in probability where the two answers part{most}."
    kept = (gains >= SAID) & (gains >= gains.iloc[0] / 4)
    tokens = [f"{visible(t)} ({signed(g)})" for t, g in zip(gained.loc[kept, "token"], gains[kept])][:3]
    before, after = mass.first_and_last(mass.ledger(run.mass, split), "chosen")
    where = "now opens with" if _at_start(run, split) else "now says, where the two answers part,"
    return f"The model {where} {', '.join(tokens)}{' instead' if after < before else ''}."


def _at_start(run: RunLog, split: str) -> bool:
    """Whether most pairs' answers differ in their first token."""
    shared = runs.column(runs.rows(run, split).drop_duplicates("pair_id"), "shared_prefix").dropna()
    return bool(len(shared) and (shared == 0).mean() > verdict.HALF)


def start(run: RunLog, split: str) -> float:
    """Mean chosen likelihood that the changes of a split's pairs count from."""
    return runs.start(runs.ends(runs.rows(run, split)))


def _mean(found: Sequence[Finding], split: str) -> float:
    return by_name(found, verdict.key(split, "displacement/chosen")).value


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"


def per_token(run: RunLog, split: str = "probe") -> pd.Series:
    """Change of each chosen answer's log-prob per token at the end, in nats."""
    ends = runs.ends(runs.rows(run, split))
    return runs.column(ends, "chosen_change") / runs.column(ends, "chosen_length")
