"""Runs without the flagged pairs, without as many random ones, and with all: one row a run, and what seeds say.

`chesboard ablate` writes ablate_arm (full, flagged, random), ablate_by, ablate_drop and ablate_equal_steps into each
config.json. Tables only.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare import board
from analysis.tables import mass, runs
from analysis.tables.intervals import finite, half_width, mean
from diagnostics.errors import DataError
from diagnostics.runlog import RunLog

# pairs that every run of a seed was measured on, by what they were to it
SETS = {
    "eval": "held-out pairs, which no run trained on",
    "common": "training pairs that every run of the seed trained on",
    "own": "training pairs that the run itself trained on",
}
MEASURES = {
    "chosen": "chosen change (nats)",
    "fell": "share displaced",
    "implicit": "accuracy",
    "kl": "KL(reference || policy), chosen (nats)",
}
KEYS = ["arm", "by", "drop", "equal_steps"]
ARMS = ("full", "flagged", "random")


@dataclass(frozen=True)
class Ablation:
    """runs: one row a finished run, see `run_row`. tracked: the tracked groups; unfinished: names of runs."""

    logs: list[RunLog]
    runs: pd.DataFrame
    tracked: list[str]
    unfinished: list[str]

    @property
    def seeds(self) -> list[int]:
        """The seeds there are."""
        return sorted({int(s) for s in self.runs["seed"]})

    @property
    def sets(self) -> list[str]:
        """Those of SETS that hold any pair, the held-out ones first."""
        return [name for name in SETS if max(self.runs[f"{name}_n"]) > 0]

    @property
    def measures(self) -> list[str]:
        """The score columns that pairs were flagged by."""
        return sorted({str(b) for b in self.runs.loc[self.runs["arm"] == "flagged", "by"]})


def is_ablation(run: RunLog) -> bool:
    """Whether the run belongs to an ablation."""
    return "ablate_arm" in run.config


def collect(logs: Sequence[RunLog]) -> Ablation:
    """Measure every finished run. Raises DataError where none is."""
    done = [run for run in logs if (run.path / board.RECORD).is_file()]
    if not done:
        raise DataError("none of these runs is finished. Start `chesboard ablate` again; it goes on where it was.")
    trained = {run.path: set(run.audit.loc[run.audit["status"] == "kept", "pair_id"]) for run in done}
    common: dict[int, set[str]] = {}
    for run in done:
        seed, own = _seed(run), trained[run.path]
        common[seed] = common.get(seed, own) & own
    rows = [run_row(run, trained[run.path], common[_seed(run)]) for run in done]
    tracked = sorted({str(name) for run in done for name in mass.tracked(run.mass)})
    unfinished = [run.name for run in logs if run not in done]
    return Ablation(list(logs), pd.DataFrame(rows), tracked, unfinished)


def run_row(run: RunLog, own: set[str], common: set[str]) -> dict[str, Any]:
    """One run at its end: seed, arm, order (its place in ARMS), by ("" for none), drop, equal_steps, trained (pairs),
    steps, then for each of SETS <set>_n and <set>_<measure>, and each tracked group's mean probability at the end and,
    as start_<group>, before."""
    row = head(run) | {"trained": len(own)}
    row["steps"] = int(max(run.steps["step"], default=0))
    probe, held_out = (_last(board.with_ratios(runs.rows(run, split))) for split in ("probe", "eval"))
    parts = {"eval": held_out, "common": probe.loc[probe["pair_id"].isin(list(common))]}
    parts["own"] = probe.loc[probe["pair_id"].isin(list(own))]
    for name, rows in parts.items():
        found = board.measured(run, rows, "probe")
        row |= {f"{name}_{key}": found[key] if len(rows) else math.nan for key in MEASURES} | {f"{name}_n": len(rows)}
    groups = mass.tracked(run.mass)
    for name in map(str, groups):
        row[f"start_{name}"], row[name] = mass.first_and_last(groups, name)
    return row


def head(run: RunLog) -> dict[str, Any]:
    """What identifies a run of the ablation: run, seed, arm, order, by, drop and equal_steps, see `run_row`."""
    config = run.config
    row: dict[str, Any] = {"run": run.name, "seed": _seed(run), "arm": str(config["ablate_arm"])}
    row["order"] = ARMS.index(row["arm"])
    row |= {"by": str(config.get("ablate_by") or ""), "drop": float(config.get("ablate_drop") or 0.0)}
    return row | {"equal_steps": bool(config.get("ablate_equal_steps"))}


def summary(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """One row an arm: KEYS, seeds, then each column's mean over seeds, and <name>_half, half of its 95 % t interval;
    of a share <name>_low and <name>_high, see board.limits."""
    found = []
    for key, rows in _groups(table.sort_values(["equal_steps", "drop", "order", "by"], kind="stable"), KEYS):
        row: dict[str, Any] = key | {"seeds": len(rows)}
        for name in columns:
            row |= {name: mean(rows[name]), f"{name}_half": half_width(rows[name])}
            row |= board.limits(name, rows[name], rows)
        found.append(row)
    return pd.DataFrame(found)


def against_random(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The flagged arm minus the random one of the same share, steps and seed: by, drop, equal_steps, seeds, then the
    mean difference of each column over seeds, <name>_half, half of its 95 % t interval, and <name>_seeds."""
    flagged, chance = (table.loc[table["arm"] == arm] for arm in ("flagged", "random"))
    both = flagged.merge(chance, on=["seed", "drop", "equal_steps"], suffixes=("", "_random"))
    found = []
    for key, rows in _groups(both, ["by", "drop", "equal_steps"]):
        row: dict[str, Any] = key | {"seeds": len(rows)}
        for name in columns:
            gaps = runs.column(rows, name) - runs.column(rows, f"{name}_random")
            row |= {name: mean(gaps), f"{name}_half": half_width(gaps), f"{name}_seeds": len(finite(gaps))}
            if name.rpartition("_")[2] in board.SHARES and len(finite(gaps)) > 1:  # two shares differ by 1 at most
                low, high = row[name] - row[f"{name}_half"], row[name] + row[f"{name}_half"]
                row |= {f"{name}_low": max(-1.0, low), f"{name}_high": min(1.0, high)}
        found.append(row)
    return pd.DataFrame(found)


def _groups(table: pd.DataFrame, keys: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The rows of each combination of keys, in the order in which it first comes."""
    for values in dict.fromkeys(zip(*(table[k] for k in keys))):
        same = [table[k] == v for k, v in zip(keys, values)]
        yield dict(zip(keys, values)), table.loc[np.logical_and.reduce(same)]


def _seed(run: RunLog) -> int:
    return int(run.config.get("seed") or 0)


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[rows["step"] == rows["step"].max()]
