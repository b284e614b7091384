"""The same pairs in two runs: what differs, with an interval of the differences, not of the two numbers."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.tables import displacement, runs
from analysis.tables.intervals import NOTHING, mean_interval, paired_share_interval
from diagnostics import outcomes
from diagnostics.errors import DataError
from diagnostics.runlog import RunLog


@dataclass(frozen=True)
class Difference:
    """A number of n pairs in two runs. value: after - before, with its 95 % interval over the pairs."""

    before: float
    after: float
    value: float
    n: int
    interval: tuple[float, float]


def difference(before: pd.Series, after: pd.Series) -> Difference:
    """Mean of two columns over the pairs that both have, and of their differences. Indices: pair_id.

    Interval: Newcombe's where both hold 0 and 1 alone (shares), else Student t of the n differences; none where these
    are all the same, or one is infinite.
    """
    both = pd.concat([before.astype(float), after.astype(float)], axis=1, keys=["before", "after"], join="inner")
    both = both.dropna()
    a, b, n = both["before"].to_numpy(), both["after"].to_numpy(), len(both)
    if not n:
        return Difference(math.nan, math.nan, math.nan, 0, NOTHING)
    interval = _of_shares(a == 1, b == 1) if np.isin(both, (0.0, 1.0)).all() else mean_interval(b - a)
    interval = interval if np.isfinite(both.to_numpy()).all() else NOTHING
    return Difference(float(a.mean()), float(b.mean()), float(b.mean() - a.mean()), n, interval)


def _of_shares(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    return paired_share_interval(*(int(k.sum()) for k in (a & b, a & ~b, ~a & b, ~a & ~b)))


def ends(run: RunLog, split: str) -> pd.DataFrame:
    """One row a pair of the split (index pair_id), as it was last measured after the start, with what `difference`
    compares: fell and rejected_fell (1, 0), chosen, rejected and margin (change in nats), per_token (of the chosen
    answer), accuracy (1 where the margin rose), kl (KL(reference || policy), nats per chosen answer), outcome."""
    rows = runs.rows(run, split)
    last = runs.ends(rows.loc[rows["step"] > 0]).set_index("pair_id")
    if last.empty:
        return pd.DataFrame(columns=_COLUMNS, dtype=float)
    found = {side: runs.column(last, f"{side}_change") for side in (*runs.SIDES, "margin")}
    more = {
        "step": last["step"], "fell": runs.fell(last, "chosen"), "rejected_fell": runs.fell(last, "rejected"),
        "per_token": found["chosen"] / runs.column(last, "chosen_length"), "kl": runs.column(last, "chosen_kl"),
        "accuracy": (found["margin"] > 0).astype(float).where(found["margin"].notna()),
        "outcome": displacement.outcome(last),
    }  # fmt: skip
    return pd.DataFrame(found | more, columns=_COLUMNS)


_COLUMNS = ["step", "fell", "chosen", "per_token", "accuracy", "kl", "rejected", "rejected_fell", "margin", "outcome"]


def shared(before: RunLog, after: RunLog, split: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`ends` of the pairs that both runs measured, in one order. A pair of the same id and another text is another
    pair, and left out."""
    a, b = ends(before, split), ends(after, split)
    ids = [i for i in a.index if i in b.index and i not in other_texts(before, after)]
    return a.loc[ids], b.loc[ids]


def require_shared(before: RunLog, after: RunLog) -> None:
    """DataError, in one sentence that says why, where the runs have no measured pair in common, or count likelihoods in
    different units."""
    kinds = [str(run.config.get("likelihood", "tokens")) for run in (before, after)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"{before.path} measured likelihoods of {kinds[0]}, and {after.path} of {kinds[1]}: these cannot be held "
            "against each other."
        )
    if any(len(shared(before, after, split)[0]) for split in ("probe", "eval")):
        return
    for run in (before, after):
        if not any(len(ends(run, split)) for split in ("probe", "eval")):
            raise DataError(f"{run.path}: no pair was measured after the start, so there is nothing to compare.")
    why = "the same ids stand for other texts" if other_texts(before, after) else "no pair_id is in both"
    raise DataError(
        f"{before.path} and {after.path} share no measured pair ({why}). Compare runs on the same data, with the same "
        "probe pairs."
    )


def other_texts(before: RunLog, after: RunLog) -> set[str]:
    """The pair_ids under which the two runs hold different texts, as far as their audits tell."""
    a, b = runs.texts(before.audit), runs.texts(after.audit)
    ids = a.index.intersection(b.index)
    return set(ids[(a.loc[ids] != b.loc[ids]).any(axis=1)])


def names(before: RunLog, after: RunLog) -> tuple[str, str]:
    """The two runs' names; with the folder above them where they are the same."""
    same = before.name == after.name
    a, b = (f"{log.path.resolve().parent.name}/{log.name}" if same else log.name for log in (before, after))
    return a, b


def unlike_steps(before: RunLog, after: RunLog) -> tuple[str, bool]:
    """Says so where the runs are read at different steps, "" where they are not; and whether the earlier one was read
    before its end. Less training displaces less, so then no difference is a verdict."""
    both = [(name, log, _end(log)) for name, log in zip(names(before, after), (before, after))]
    (early, log, first), (_, _, last) = sorted(both, key=lambda one: one[2])
    if first == last:
        return "", False
    (one, _, at), (other, _, then) = both
    words = f"{one} is read at step {at} and {other} at step {then}"
    if _whole(log):
        return words, False
    return f"{words}: {early} has not finished, so this is no verdict", True


def _whole(run: RunLog) -> bool:
    """Whether a run was measured to its end: it says so itself, and a trace has all the steps that it was asked for."""
    asked = run.config.get("steps") if run.config.get("command") == "trace" else None
    return bool(run.manifest.get("finished")) or (bool(asked) and _end(run) >= max(asked))


def _end(run: RunLog) -> int:
    """The step at which the pairs were last measured again."""
    steps = [int(rows["step"].to_numpy().max()) for split in ("probe", "eval") if len(rows := runs.rows(run, split))]
    return max(steps, default=0)


def noise(before: RunLog, after: RunLog) -> float:
    """What a difference of two changes must exceed to be one, in nats: the larger noise, and at least the least
    effect."""
    return float(outcomes.least(max(runs.noise(before), runs.noise(after))))
