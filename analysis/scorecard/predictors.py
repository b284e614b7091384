"""Which measure, taken before training, told which pairs would lose chosen likelihood."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.show import units
from analysis.show.units import Unit
from analysis.tables import columns, runs, weighted
from analysis.tables.columns import direction
from analysis.tables.intervals import NOTHING, auroc, finite, mean, percentiles, resamples, spearman
from diagnostics.direction import HIGHER
from diagnostics.errors import DataError
from diagnostics.runlog import RunLog

BASELINE = "length_difference"
OUTCOMES = ("displacement", "displacement_per_token")
STATISTICS = ("spearman", "per_token", "auroc", "average_precision", "precision", "lift")
EARLY = ["step", "last", "n", "spearman", "auroc"]
RAREST, COMMONEST = 0.05, 0.95
FLAGGED = 0.1
FEWEST = 5
NOT_MEASURES = {"step", "epoch", "noise", "loss", "source_row", "rank", "flagged", "fell", "logratio_margin", *OUTCOMES}
NOT_MEASURES |= {"needed_loss", "common_mode"}  # a function of the reference margin; 0 before training
NOT_ENDINGS = ("_length", "_logps", "_logratios", "_rewards", "_kl", "_kl_reverse", "_incentive", "_change")


@dataclass(frozen=True)
class Scorecard:
    """Runs with their predictors. tables: one a run, see `table`; says: which pairs, one sentence a run; card: see
    `scorecard`; early: see `under_way`; unit: of the first run."""

    names: list[str]
    tables: list[pd.DataFrame]
    says: list[str]
    card: pd.DataFrame
    early: pd.DataFrame
    unit: Unit = units.TOKENS


def collect(logs: Sequence[RunLog], scores: Sequence[pd.DataFrame] = ()) -> Scorecard:
    """The scorecard of runs. scores: from runs.read_scores, none, one for all runs, or one for each.

    Raises DataError where a run's pairs are not those that were scored.
    """
    files = list(scores) * (len(logs) if len(scores) == 1 else 1) or [None] * len(logs)
    if len(files) != len(logs):
        raise DataError(f"{len(files)} score files for {len(logs)} runs. Give one for all, or one for each run.")
    tables = []
    for run, file in zip(logs, files):
        ends = runs.ends(runs.rows(run, "probe"))
        if file is not None and len(ends) and not set(ends["pair_id"]) & set(file["pair_id"]):
            raise DataError(f"{run.path}: none of its probe pairs is in the scores. Flag the data this run trained on.")
        tables.append(_of_unit(table(ends, file, units.of(run).reference_margin), units.of(run)))
    early = pd.DataFrame([row for run in logs for row in under_way(run)], columns=EARLY)
    says, unit = [pairs_of(r) for r in logs], units.of(logs[0])
    return Scorecard([r.name for r in logs], tables, says, scorecard(tables), early, unit)


def _of_unit(table: pd.DataFrame, unit: Unit) -> pd.DataFrame:
    """The table without what was made of tokens, where there are none."""
    return table if unit.by_token else table.drop(columns=BASELINE).dropna(axis="columns", how="all")


def under_way(run: RunLog) -> list[dict[str, Any]]:
    """What the first probe after the start tells of the end: step, last (step), n, and of the nats that the chosen
    answers had lost by then the rank correlation with those lost at the end (spearman) and the AUROC for "fell" at the
    end (NaN where AUROC is refused). No row where there was no probe in between."""
    probed = runs.rows(run, "probe")
    steps = sorted({int(s) for s in probed["step"]})
    if len(steps) < 3:
        return []
    at = probed.loc[probed["step"] == steps[1]].drop_duplicates("pair_id").set_index("pair_id")["chosen_change"]
    ends = runs.ends(probed).set_index("pair_id")
    lost, fell = -at.reindex(ends.index), runs.fell(ends, "chosen")
    told = auroc(lost, fell) if RAREST <= mean(fell) <= COMMONEST else math.nan
    rank = spearman(lost, -ends["chosen_change"])
    return [{"step": steps[1], "last": steps[-1], "n": int(lost.notna().sum()), "spearman": rank, "auroc": told}]


def table(ends: pd.DataFrame, scores: pd.DataFrame | None = None, margin: str = "reference_margin") -> pd.DataFrame:
    """One row a pair: pair_id, the measures as they stood at the pair's first measurement, and

    displacement: nats of chosen likelihood lost (positive = displaced); displacement_per_token; fell: runs.fell.
    ends: from runs.ends. scores: the measures of `chesboard flag`, joined by pair_id, which go before the run's own.
    margin: what the start model's margin of likelihoods is called.
    """
    found = pd.DataFrame({"pair_id": ends["pair_id"], "displacement": -runs.column(ends, "chosen_change")})
    found["displacement_per_token"] = found["displacement"] / runs.column(ends, "chosen_length")
    found["fell"] = runs.fell(ends, "chosen")
    start = pd.DataFrame({str(c)[6:]: ends[c] for c in ends if str(c).startswith("start_")})
    if scores is not None:
        scored = scores.drop_duplicates("pair_id").set_index("pair_id").reindex(found["pair_id"])
        start = scored.set_index(found.index).combine_first(start)
    for name in measures(start):
        found[name] = runs.column(start, name)
    if margin not in found:
        found[margin] = runs.column(start, "chosen_logps") - runs.column(start, "rejected_logps")
    found[BASELINE] = runs.column(ends, "rejected_length") - runs.column(ends, "chosen_length")
    return found


def measures(frame: pd.DataFrame) -> list[str]:
    """Numeric columns that are measures of a pair and hold any number: those of a known direction first."""
    numeric = [c for c in frame if pd.api.types.is_numeric_dtype(frame[c]) and c not in NOT_MEASURES]
    numeric = [str(c) for c in numeric if not str(c).endswith(NOT_ENDINGS)]
    return columns.ordered(c for c in numeric if columns.direction(c) or len(frame[c].dropna()))


def pairs_of(run: RunLog) -> str:
    """Which of the run's pairs were measured at its end."""
    probed = runs.rows(run, "probe")
    if probed.empty:
        return f"{run.name}: no probe pairs"
    n, steps = len(set(probed["pair_id"])), sorted({int(s) for s in probed["step"]})
    first, last = steps[0], steps[-1]
    total = (run.manifest.get("pairs") or {}).get("train")
    which = f"all {n:,} training pairs" if n == total else f"{n:,} probe pairs"
    of = f" of {total:,} training pairs" if total and n != total else ""
    start = "before the first step" if first == 0 else f"at step {first}"
    end = f" and at step {last}" if last > first else " alone"
    return f"{run.name}: {which}{of}, measured {start}{end}"


def scorecard(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One row a measure, and a second one with the length difference held fixed; tables: from table(), one a run.

    measure; given ("" or "length"); direction: which end was taken for "displaced" ("higher", "lower", and "?" behind
    it where nothing is known of it and the sign of its own rank correlation decided); n: rows; runs; fell: share of
    the pairs that fell; told, told_n: runs and rows whose AUROC was taken, as it is refused where almost none or almost
    all fell;
    fewest: how many of those rows fell, or how many held, the smaller number;
    with_length: Spearman with the length difference; then each of STATISTICS with <name>_low and <name>_high (95 %).

    spearman: with the nats lost; per_token: with the nats lost per token; auroc, average_precision: for "fell";
    precision: share that fell of the highest tenth; lift: precision / share that fell. Each is the mean over runs.
    Intervals: bootstrap over pairs and over runs at once (weights multiply), so a pair is resampled in all runs
    together. Held fixed: partial Spearman; AUROC between pairs of the same tenth of length difference; the others
    from the place within that tenth.
    """
    names = columns.ordered(dict.fromkeys(name for t in tables for name in measures(t)))
    return pd.DataFrame([row for name in names for row in _rows(tables, name)])


def base_rate(tables: Sequence[pd.DataFrame]) -> float:
    """Share of the pairs that fell, mean over runs."""
    return mean([mean(t["fell"]) for t in tables])


def _rows(tables: Sequence[pd.DataFrame], name: str) -> list[dict[str, Any]]:
    kept = [t.loc[(runs.column(t, name) + t["displacement"]).notna()] for t in tables]
    kept = [t for t in kept if len(t)]
    sign, told = _orient(kept, name), [t for t in kept if _tells(t)]
    words = ("higher" if sign > 0 else "lower") + ("" if direction(name) else "?")
    head: dict[str, Any] = {"measure": name, "direction": words, "n": sum(map(len, kept)), "runs": len(kept)}
    head |= {"told": len(told), "told_n": sum(map(len, told)), "fell": base_rate(kept)}
    fallen = [int(t["fell"].sum()) for t in told]
    head["fewest"] = min(sum(fallen), head["told_n"] - sum(fallen))
    head["with_length"] = mean([_rank_correlation(t, name, BASELINE) for t in kept])
    given = ("",) if name == BASELINE else ("", "length")
    return [head | {"given": g} | _estimates(kept, name, sign, bool(g)) for g in given]


def _orient(tables: Sequence[pd.DataFrame], name: str) -> int:
    """The known direction of a measure; of an unknown one that of its own rank correlation with the nats lost."""
    found = mean([_rank_correlation(t, name, "displacement") for t in tables])
    return direction(name) or (-HIGHER if found < 0 else HIGHER)


def _rank_correlation(pairs: pd.DataFrame, a: str, b: str) -> float:
    return spearman(runs.column(pairs, a), runs.column(pairs, b))


def _tells(pairs: pd.DataFrame) -> bool:
    return RAREST <= mean(pairs["fell"]) <= COMMONEST


def _estimates(tables: Sequence[pd.DataFrame], name: str, sign: int, matched: bool) -> dict[str, float]:
    """Every statistic with its interval: the mean over runs, drawn again over pairs and runs."""
    ids = sorted({i for t in tables for i in t["pair_id"]})
    rows = resamples(len(ids)) if len(ids) >= FEWEST else 0
    pairs, clusters = weighted.draws(rows, len(ids)), weighted.draws(rows, len(tables), 1)
    place = {pair: k for k, pair in enumerate(ids)}
    found = [
        _statistics(t, sign * runs.column(t, name), pairs[:, [place[i] for i in t["pair_id"]]], matched) for t in tables
    ]
    out: dict[str, float] = {}
    for statistic in STATISTICS:
        values = np.array([f[statistic] for f in found]).reshape(len(found), rows + 1).T
        known = np.where(np.isfinite(values), clusters, 0)
        total = known.sum(1)
        mixed = (known * np.nan_to_num(values)).sum(1) / np.where(total > 0, total, math.nan)
        low, high = percentiles(mixed) if rows else NOTHING
        out |= {statistic: float(mixed[0]), f"{statistic}_low": low, f"{statistic}_high": high}
    return out


def _statistics(pairs: pd.DataFrame, predictor: pd.Series, w: np.ndarray, matched: bool) -> dict[str, np.ndarray]:
    """STATISTICS of one run, (R,) each."""
    x, lost, per_token, fell, length = (
        c.to_numpy(dtype=float) for c in (predictor, *(runs.column(pairs, c) for c in (*OUTCOMES, "fell", BASELINE)))
    )
    if len(set(x)) < 2:
        return dict.fromkeys(STATISTICS, np.full(len(w), math.nan))  # it ranks nothing
    strata = weighted.strata_of(length) if matched else None
    placed = x if strata is None else weighted.within(x, strata)
    if matched:
        found = {k: weighted.partial_spearman(x, y, length, w) for k, y in zip(STATISTICS, (lost, per_token))}
    else:
        found = {k: weighted.spearman(x, y, w) for k, y in zip(STATISTICS, (lost, per_token))}
    if not _tells(pairs):
        return found | dict.fromkeys(STATISTICS[2:], np.full(len(w), math.nan))
    precision = weighted.precision_at(placed, fell, w, FLAGGED)
    rate = (w * fell).sum(1) / w.sum(1)
    lift = np.divide(precision, rate, out=np.full(len(w), math.nan), where=rate > 0)
    found |= {"auroc": weighted.auroc(x, fell, w, strata), "precision": precision, "lift": lift}
    return found | {"average_precision": weighted.average_precision(placed, fell, w)}


def has_numbers(card: pd.DataFrame) -> bool:
    """Whether any measure could be held against what happened."""
    return len(card) > 0 and len(finite(card["spearman"])) > 0
