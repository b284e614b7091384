"""The board: runs of several objectives on the same pairs, one row a run, and what their seeds say together.

A run on the board carries `board_label` in its config.json and, once finished, a board.json. Tables only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.show import units
from analysis.show.units import Unit
from analysis.tables import runs
from analysis.tables.intervals import finite, half_width, mean, share_interval, spearman
from analysis.tables.mass import of_kind
from diagnostics import outcomes
from diagnostics.errors import DataError
from diagnostics.runlog import RunLog, read_json

RECORD = "board.json"
SHARES = ("fell", "implicit", "ranking", "top", "sampled")  # shares of pairs, and a mean probability
SPLITS = {"probe": "training", "eval": "held-out"}
# entries of the two published comparisons, and what they are in their words
RRPO = {
    "dpo": "DPO",
    "dpa": "DPA",
    "tdpo2": "TDPO2",
    "ddpo_dense": "DDPO",
    "rrpo": "RRPO, alpha 0.01",
    "rrpo:phrases=false": "RRPO without phrase reward, alpha 0.01",
    "rrpo:alpha=0": "RRPO without KL term",
    "rrpo:alpha=0.1": "RRPO, alpha 0.1",
    "rrpo:alpha=0.1:phrases=false": "RRPO without phrase reward, alpha 0.1",
}
LEANPO = {
    "dpo": "DPO",
    "simpo": "SimPO",
    "leanpo": "LeanPO, dynamic label smoothing",
    "leanpo:dynamic=false": "LeanPO, fixed label smoothing",
}


@dataclass(frozen=True)
class Board:
    """runs: one row a finished run (see run_row); paths: one row a run, split and step; unfinished: name and why. Of
    denoisers `chosen`, `rejected` and `drift` are of errors, policy - reference, in both."""

    logs: list[RunLog]
    runs: pd.DataFrame
    paths: pd.DataFrame
    unfinished: dict[str, str]

    @property
    def unit(self) -> Unit:
        """What the runs' likelihoods are counted in."""
        return units.of(self.logs[0])

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len(set(self.runs["seed"]))

    @property
    def several_rates(self) -> bool:
        """Whether any objective was trained with more than one learning rate."""
        return len(self.entries) > len(set(self.runs["label"]))

    @property
    def entries(self) -> list[tuple[str, float]]:
        """(label, learning rate) of every entry, in the order of the runs."""
        return list(dict.fromkeys(zip(self.runs["label"], self.runs["rate"])))

    def of(self, entry: tuple[str, float]) -> pd.DataFrame:
        """The runs of one entry."""
        return self.runs.loc[(self.runs["label"] == entry[0]) & (self.runs["rate"] == entry[1])]


def is_board(run: RunLog) -> bool:
    """Whether the run belongs to a board."""
    return "board_label" in run.config


def collect(logs: Sequence[RunLog]) -> Board:
    """Measure every finished run; the others are named with their reason."""
    records = {run.path: read_json(run.path / RECORD) if (run.path / RECORD).exists() else {} for run in logs}
    done = [run for run in logs if "steps" in records[run.path]]
    unfinished = {r.name: str(records[r.path].get("error", "stopped before its end")) for r in logs if r not in done}
    if not done:
        raise DataError("none of these runs is finished. Start `chesboard compare` again; it goes on where it was.")
    rows = [run_row(run, records[run.path]) for run in done]
    paths = [path_rows(run) for run in done]
    unit = units.of(logs[0])
    ends, way = _turned(pd.DataFrame(rows), unit), _turned(pd.concat(paths, ignore_index=True), unit)
    return Board(list(logs), ends, way, unfinished)


def _turned(table: pd.DataFrame, unit: Unit) -> pd.DataFrame:
    """Log-ratios as the unit shows them; a margin stays."""
    names = [c for c in table if str(c).rpartition("_")[2] in ("chosen", "rejected", "drift")]
    return table if unit.sign > 0 else table.assign(**{str(c): -table[c] for c in names})


def run_row(run: RunLog, record: dict[str, Any]) -> dict[str, Any]:
    """One run at its end: label, rate (learning rate), seed, the columns of `measured` as probe_* and eval_*.

    start_eval_* is the same before the first step. chosen_incentive, rejected_incentive: means over all train rows.
    seconds, cpu_seconds: of the whole run, with loading and measuring.
    """
    row = head(run)
    for split in SPLITS:
        rows = with_ratios(runs.rows(run, split))
        last, first = (rows.loc[rows["step"] == step] for step in (rows["step"].max(), rows["step"].min()))
        row |= {f"{split}_{k}": v for k, v in measured(run, last, split).items()}
        row |= {f"start_{split}_{k}": v for k, v in measured(run, first, split).items()}
    train = runs.rows(run, "train")
    for side in runs.SIDES:
        row[f"{side}_incentive"] = mean(runs.column(train, f"{side}_incentive"))
    return row | {name: float(record.get(name) or math.nan) for name in ("seconds", "cpu_seconds")}


def head(run: RunLog) -> dict[str, Any]:
    """What identifies a run on the board."""
    config = run.config
    rate = float(config.get("learning_rate", math.nan))
    return {"run": run.name, "label": str(config["board_label"]), "rate": rate, "seed": int(config.get("seed", 0))}


def with_ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Pair rows with their log-ratios in nats: `chosen` and `rejected` are policy - reference, `drift` their mean
    (what both sides have in common), `margin` their difference. Without a reference: policy - its start."""
    rows = rows.copy()
    for side in runs.SIDES:
        ratio = runs.column(rows, f"{side}_logps") - runs.column(rows, f"ref_{side}_logps")
        rows[side] = ratio.fillna(runs.column(rows, f"{side}_change"))
    return rows.assign(drift=(rows["chosen"] + rows["rejected"]) / 2, margin=rows["chosen"] - rows["rejected"])


def measured(run: RunLog, rows: pd.DataFrame, split: str) -> dict[str, float]:
    """Means over the pairs of one split at one step; rows from `with_ratios`.

    n; chosen, rejected, drift, margin in nats; fell: share of pairs whose chosen answer fell below the reference
    (outcomes.fell); implicit: share with margin > 0; ranking: share whose chosen answer is the likelier
    one; kl, kl_reverse: nats per chosen response, *_token: per token of it; top: share in which the likeliest token
    is the chosen answer's where the sides first differ; sampled: probability of that token; the columns of
    `lengths`; eos: probability that the chosen answer ends where it does.
    """
    found = {name: mean(rows[name]) for name in ("chosen", "rejected", "drift", "margin")} | {"n": float(len(rows))}
    chosen, margin = runs.column(rows, "chosen"), runs.column(rows, "margin")
    found["fell"] = mean(outcomes.fell(chosen, runs.noise(run)))
    found["implicit"] = _share(margin > 0, margin)
    gap = runs.column(rows, "chosen_logps") - runs.column(rows, "rejected_logps")
    found["ranking"] = _share(gap > 0, gap)
    for name in ("kl", "kl_reverse"):
        kl = runs.column(rows, f"chosen_{name}")
        found |= {name: mean(kl), f"{name}_token": mean(kl / runs.column(rows, "chosen_length"))}
    return found | lengths(rows) | _answers(run, rows, split)


def lengths(rows: pd.DataFrame) -> dict[str, float]:
    """length_rho: Spearman of margin with chosen minus rejected length; chosen_length, rejected_length: means in
    tokens; preferred_length: mean length of each pair's likelier answer."""
    chosen, rejected = (runs.column(rows, f"{side}_length") for side in runs.SIDES)
    likelier = runs.column(rows, "chosen_logps") > runs.column(rows, "rejected_logps")
    return {
        "length_rho": spearman(rows["margin"], chosen - rejected),
        "chosen_length": mean(chosen),
        "rejected_length": mean(rejected),
        "preferred_length": mean(chosen.where(likelier, rejected)),
    }


def path_rows(run: RunLog) -> pd.DataFrame:
    """label, rate, seed, split, step and the mean log-ratios chosen and rejected there."""
    tables = []
    for split in SPLITS:
        rows = with_ratios(runs.rows(run, split))
        table = rows.pivot_table(index="step", values=list(runs.SIDES), aggfunc="mean").reset_index()
        tables.append(table.assign(split=split, **{k: v for k, v in head(run).items() if k != "run"}))
    return pd.concat(tables, ignore_index=True)


def summary(board: Board, names: Sequence[str]) -> pd.DataFrame:
    """One row an entry and learning rate, in the order given: seeds, mean of each column over seeds, and <name>_half,
    half of its 95 % t interval; <name>_seeds: how many seeds measured it; <name>_low, _high: see `limits`."""
    found = []
    for label, rate in board.entries:
        rows = board.of((label, rate))
        row: dict[str, Any] = {"label": label, "rate": rate, "seeds": len(rows)}
        for name in names:
            values = rows[name]
            row |= {name: mean(values), f"{name}_half": half_width(values), f"{name}_seeds": len(finite(values))}
            row |= limits(name, values, rows)
        found.append(row)
    return pd.DataFrame(found)


def start(board: Board, names: Sequence[str]) -> dict[str, Any]:
    """A row like those of `summary` for the models before training: one value a seed, whatever the objective."""
    columns = [f"start_{name}" for name in names]
    seeds = board.runs.groupby("seed")[columns].first()
    row: dict[str, Any] = {"seeds": len(seeds)}
    for name, column in zip(names, columns):
        row |= {name: mean(seeds[column]), f"{name}_half": half_width(seeds[column])}
        row[f"{name}_seeds"] = len(finite(seeds[column]))
        row |= limits(name, seeds[column], board.runs.groupby("seed").first())
    return row


def limits(name: str, values: ArrayLike, rows: pd.DataFrame) -> dict[str, float]:
    """<name>_low and <name>_high: the 95 % interval of a share's mean over runs, within [0, 1]; nothing for a column
    that is no share. rows: those of the values, with <set>_n pairs each."""
    pairs, _, bare = name.rpartition("_")
    if bare not in SHARES:
        return {}
    return dict(zip((f"{name}_low", f"{name}_high"), share_interval(values, runs.column(rows, f"{pairs}_n"))))


def ratios(board: Board, name: str, above: tuple[str, float], below: tuple[str, float]) -> np.ndarray:
    """One entry's value divided by another's, seed by seed; entries are (label, rate)."""
    top, bottom = (board.of(entry).set_index("seed")[name] for entry in (above, below))
    values = (top / bottom.where(bottom > 0)).dropna()
    return values.to_numpy(dtype=float)


def frontier(table: pd.DataFrame, x: str, y: str) -> pd.Series:
    """Whether no other row has both less (or as much) of x and more (or as much) of y, and more of one."""
    better = [
        ((table[x] <= row[x]) & (table[y] >= row[y]) & ((table[x] < row[x]) | (table[y] > row[y]))).any()
        for row in table.to_dict("records")
    ]
    return ~pd.Series(better, index=table.index) & table[x].notna() & table[y].notna()


def mixed(board: Board) -> list[str]:
    """Which of model, tokenizer and data was not the same in all runs of a seed: then the board compares nothing."""
    found: dict[str, set[tuple[Any, str]]] = {}
    seeds: dict[str, set[Any]] = {}
    for run in board.logs:
        for name, digest in (run.manifest.get("hashes") or {}).items():
            found.setdefault(name, set()).add((run.config.get("seed"), str(digest)))
            seeds.setdefault(name, set()).add(run.config.get("seed"))
    return sorted(name for name in found if len(found[name]) > len(seeds[name]))


def _share(hits: pd.Series, measured: pd.Series) -> float:
    return mean(hits.astype(float).where(measured.notna()))


def _answers(run: RunLog, rows: pd.DataFrame, split: str) -> dict[str, float]:
    """top, sampled and eos from the mass table at the step of `rows`."""
    step = rows["step"].max() if len(rows) else -1
    mass = of_kind(run.mass, ("chosen", "argmax", "chosen_eos"), split)
    mass = mass.loc[mass["step"] == step]
    chosen, argmax, eos = (
        mass.loc[mass["kind"] == kind].drop_duplicates("pair_id").set_index("pair_id")
        for kind in ("chosen", "argmax", "chosen_eos")
    )
    if chosen.empty:
        return {"top": math.nan, "sampled": math.nan, "eos": mean(eos["prob"])}
    same = (chosen["token_id"] == argmax["token_id"].reindex(chosen.index)).astype(float)
    return {"top": mean(same), "sampled": mean(chosen["prob"]), "eos": mean(eos["prob"])}
