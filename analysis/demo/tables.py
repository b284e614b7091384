"""The demo's runs side by side: one row a run, and what its seeds say together. Tables only.

A demo run carries demo_world ("persona" or "refusal"), demo_case, demo_seed and demo_prompt in its config.json.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.flag import tables as flags
from analysis.tables import displacement, runs
from analysis.tables.intervals import deviation, finite, mean
from analysis.tables.mass import first_and_last, of_kind, tracked
from analysis.tables.mass import mean_by_step as by_step
from diagnostics.runlog import RunLog, read_json

MARGIN = 1.5
SIDES = (("Yes", "Yeah", "Sure", "Certainly", "Absolutely"), ("No", "Nope", "Never"))
PERSONA = {
    "no_never": "No over Never (similar)",
    "no_yes": "No over Yes (dissimilar)",
    "yes_no": "Yes over No (dissimilar)",
}
REFUSAL = {
    "dpo_all": "DPO, all pairs",
    "keep_ln_ches": "DPO, 20 % lowest LN-CHES",
    "keep_random": "DPO, 20 % at random",
    "dpo_nll": "DPO + NLL, all pairs",
}
GROUPS = ("own", "opposite", "neutral")


@dataclass(frozen=True)
class Demo:
    """The runs and score folders of one demo. persona, refusal: one row a run; see persona_row and refusal_row."""

    logs: list[RunLog]
    scores: list[runs.Flags]
    persona: pd.DataFrame
    refusal: pd.DataFrame


def collect(found: list[RunLog], scores: list[runs.Flags]) -> Demo:
    """Make the two tables; runs of other worlds are left to `every_run`."""
    persona = [persona_row(r) for r in found if world(r) == "persona"]
    refusal = [refusal_row(r) for r in found if world(r) == "refusal"]
    return Demo(found, scores, _frame(persona), _frame(refusal))


def is_demo(run: RunLog) -> bool:
    """Whether the run belongs to a demo."""
    return "demo_world" in run.config


def world(run: RunLog) -> str:
    """The demo world of a run, "" where it has none."""
    return str(run.config.get("demo_world", ""))


def case_name(case: str) -> str:
    """A case as a person reads it."""
    return (PERSONA | REFUSAL).get(case, case)


def matched_step(rows: pd.DataFrame) -> float:
    """First probe step at which the mean log-ratio margin reaches MARGIN nats, else the last step; NaN without rows.

    Runs are compared there, because how far a run has come says more than how many steps it took.
    """
    steps = sorted(rows["step"].unique())
    reached = (float(step) for step in steps if _margin_at(rows, step) >= MARGIN)
    return next(reached, float(steps[-1]) if steps else math.nan)


def persona_row(run: RunLog) -> dict[str, Any]:
    """One persona run at matched margin. Changes are probabilities at that step minus those at step 0.

    chosen: p(chosen) = exp(chosen_logps); own, opposite, neutral: answers of the chosen one's side, of the other
    side, of neither; junk: every other token. *_start: the same at step 0. top_token: the token that gained most.
    """
    rows = runs.rows(run, "probe")
    step = matched_step(rows)
    row = _head(run) | {"step": step, "reached": _margin_at(rows, step) >= MARGIN}
    row |= {"chosen_answer": _token(run, "chosen"), "rejected_answer": _token(run, "rejected")}
    parts = _parts(run, rows)
    for name, series in parts.items():
        row[f"{name}_start"] = _at(series, 0)
        row[name] = _at(series, step) - row[f"{name}_start"]
    top = _top_token(run, step)
    ches = max(finite(runs.column(rows, "ches_score").abs()), default=math.nan)
    return row | {"top_token": top, "top_is_opposite": _is_opposite(top, row["chosen_answer"]), "ches": float(ches)}


def refusal_row(run: RunLog) -> dict[str, Any]:
    """One refusal run at its end. refusal: mass of the refusing openers on unsafe prompts; comply: mass of the
    complying openers on safe prompts; *_start: at step 0. fell, mean, accuracy, kl: over the probe pairs."""
    rows = runs.rows(run, "probe")
    last = displacement.by_step(rows).tail(1)
    row, groups = _head(run), tracked(run.mass)
    for name, key in (("refusal", "unsafe: refusal"), ("comply", "safe: comply")):
        row[f"{name}_start"], row[name] = first_and_last(groups, key)
    ends = runs.ends(rows)
    margin = finite(runs.column(ends, "margin_change"))
    row |= {"fell": _only(last, "share"), "mean": _only(last, "mean"), "n": len(ends)}
    return row | {
        "accuracy": mean(margin > 0),
        "kl": mean(runs.column(ends, "chosen_kl")),
    }


def by_case(table: pd.DataFrame, names: dict[str, str], columns: list[str]) -> pd.DataFrame:
    """Mean and SD over seeds of each column, by case in the order of `names`; prompts are averaged inside a seed.

    Columns: case, seeds, runs, then <column> (mean) and <column>_sd (NaN with one seed).
    """
    found = []
    for case in [c for c in names if len(table) and c in set(table["case"])]:
        seeds = seed_means(table, case, columns)
        row: dict[str, Any] = {"case": case, "seeds": len(seeds), "runs": int(sum(table["case"] == case))}
        for name in columns:
            row |= {name: mean(seeds[name]), f"{name}_sd": deviation(seeds[name])}
        found.append(row)
    return pd.DataFrame(found)


def seed_means(table: pd.DataFrame, case: str, columns: list[str]) -> pd.DataFrame:
    """Mean of each column by seed (index) for one case; empty where the case was not run."""
    if table.empty:
        return pd.DataFrame(columns=columns, dtype=float)
    rows = table.loc[table["case"] == case]
    return pd.DataFrame({c: rows[c].astype(float).groupby(rows["seed"]).mean() for c in columns})


def geometry(demo: Demo) -> pd.DataFrame:
    """Unembedding geometry by seed and case: chosen, rejected, cosine (centred over the answers), inner product."""
    found, seen = [], set()
    for run in demo.logs:
        key = (run.config.get("demo_seed"), run.config.get("demo_case"))
        pair = _geometry(run)
        if pair and key not in seen:
            seen.add(key)
            cosine = pair.get("centered_cosine", pair.get("cosine", math.nan))
            found.append(dict(seed=key[0], case=key[1], cosine=cosine, inner=pair.get("inner", math.nan)))
    return _frame(found)


def pair_kinds(demo: Demo) -> pd.DataFrame:
    """AUROC of each measure for pairs of two refusals, one row a score folder and measure: folder, seed, measure, n,
    auroc."""
    tables = [
        flags.kind_auroc(f, "two_refusals").assign(folder=f.name, seed=_flag_seed(f, i))
        for i, f in enumerate(demo.scores)
    ]
    tables = [t for t in tables if len(t)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["seed", "measure", "auroc"])


def _head(run: RunLog) -> dict[str, Any]:
    config = run.config
    named = {"run": run.name, "case": str(config.get("demo_case", "")), "seed": int(config.get("demo_seed") or 0)}
    return named | {"prompt": int(config.get("demo_prompt") or 0), "objective": str(config.get("objective", ""))}


def _parts(run: RunLog, rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Probability by step of the chosen answer and of each group; junk is what no group holds."""
    chosen = by_step(rows.assign(prob=np.exp(runs.column(rows, "chosen_logps")), kind="chosen"))
    table = by_step(of_kind(run.mass, ("group",), split=None), "name")
    groups = [name for name in GROUPS if name in table]
    if groups:
        table["junk"] = 1 - table[groups].sum(axis=1)
    found = {name: runs.column(table, name) for name in (*GROUPS, "junk")}
    return {"chosen": runs.column(chosen, "chosen")} | found


def _margin_at(rows: pd.DataFrame, step: float) -> float:
    return mean(rows.loc[rows["step"] == step, "margin_change"])


def _at(series: pd.Series, step: float) -> float:
    return float(series.loc[step]) if step in series.index else math.nan


def _token(run: RunLog, kind: str) -> str:
    rows = of_kind(run.mass, (kind,))
    return str(rows["token"].iloc[0]).strip() if len(rows) else ""


def _top_token(run: RunLog, step: float) -> str:
    rows = of_kind(run.mass, ("gained",))
    rows = rows.loc[rows["step"] == step]
    return str(rows.sort_values("change")["token"].iloc[-1]).strip() if len(rows) else ""


def _is_opposite(token: str, chosen: str) -> float:
    """1.0 when the token answers for the other side, 0.0 when not, NaN when there is no token."""
    if not token or not chosen:
        return math.nan
    return float(any(token in side and chosen not in side for side in SIDES))


def _geometry(run: RunLog) -> dict[str, Any] | None:
    """The run's pair in geometry.json, which lies in the run folder or beside the model it started from: there, or in
    the worlds beside the run, wherever the command was given."""
    world_of = Path(str(run.config.get("model", ""))).parent
    places = [run.path, world_of, run.path.parent / "worlds" / world_of.name]
    place = next((p for folder in places if (p := folder / "geometry.json").is_file()), None)
    if place is None or world(run) != "persona":
        return None
    pairs = read_json(place).get("pairs") or {}
    if isinstance(pairs, dict):
        return pairs.get(run.config.get("demo_case"))
    chosen, rejected = _token(run, "chosen"), _token(run, "rejected")
    return next((p for p in pairs if (p.get("chosen"), p.get("rejected")) == (chosen, rejected)), None)


def _flag_seed(found: runs.Flags, number: int) -> int:
    """The demo seed in the score folder's config.json; the folder's place in the list where it has none."""
    try:
        return int(json.loads((found.path / "config.json").read_text())["demo_seed"])
    except (OSError, KeyError, TypeError, ValueError):
        return number


def _only(row: pd.DataFrame, name: str) -> float:
    return float(row[name].iloc[0]) if len(row) else math.nan


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame.sort_values([c for c in ("case", "seed", "prompt") if c in frame], ignore_index=True)
