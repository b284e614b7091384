"""A run in plain files, and in other people's viewers: every table as CSV or Parquet with what its columns mean, the
scalars of its steps and its pairs sent to W&B, MLflow or trackio.
"""

import importlib
import math
import numbers
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tables import pair_table, runs
from diagnostics.errors import DataError, UserError
from diagnostics.files import disk_errors, write_json
from diagnostics.runlog import TABLES, RunLog, write_frame

COLUMNS = "columns.json"
_SIDES = {  # columns of both sides, in which {side} is chosen or rejected: unit, meaning
    "{side}_logps": ("nats", "log-prob of the {side} answer under the policy, summed over its tokens, end included"),
    "ref_{side}_logps": ("nats", "the same under the reference"),
    "{side}_length": ("tokens", "length of the {side} answer, end included"),
    "{side}_rewards": ("", "the objective's implicit reward of the {side} answer"),
    "{side}_grad_norm": ("", "length of the gradient of the {side} answer's summed log-prob"),
    "{side}_has_eos": ("", "whether the {side} answer as it was read ends in an end token"),
    "{side}": ("", "text of the {side} answer"),
}
_OWN = {  # the columns that no measure describes, in whichever table: unit, meaning
    "step": ("", "number of optimizer steps done"),
    "epoch": ("", "passes over the data done"),
    "split": ("", "train, probe (training pairs measured again and again) or eval (held out)"),
    "pair_id": ("", "the pair's id, by which tables are joined"),
    "source_row": ("", "the pair's row in the data, counted from 0"),
    "loss": ("", "the objective's loss of the pair"),
    "grad_inner": ("", "inner product of the gradients of the two answers' summed log-probs"),
    "kind": ("", "what the row follows: a token that gained or lost, a token group, an answer ..."),
    "name": ("", "what is followed, in a word"),
    "rank": ("", "place among its like: mass from 0, scores from 1, the most prone"),
    "token_id": ("", "the token's id"),
    "token": ("", "the token as text"),
    "prob": ("", "probability; of an answer, exp of the mean log-prob of its tokens"),
    "prob_start": ("", "the same at the first measurement"),
    "change": ("", "prob minus prob_start"),
    "side": ("", "chosen or rejected"),
    "position": ("tokens", "place in the answer, from 0"),
    "logp": ("nats", "log-prob of the token under the policy"),
    "ref_logp": ("nats", "log-prob of the token under the reference"),
    "kl": ("nats", "KL(reference || policy) at the token"),
    "status": ("", "kept or scored, or skipped"),
    "reason": ("", "why a row was skipped"),
    "doubts": ("", "what is doubtful about a kept row"),
    "prompt": ("", "text of the prompt"),
    "prompt_length": ("tokens", "length of the prompt"),
    "flagged": ("", "whether the pair is flagged as prone to displacement"),
    "flag_reason": ("", "by what rule"),
    "round": ("", "number of the round of sampling"),
    "prompt_id": ("", "the prompt's id"),
    "sampler": ("", "who answered, and how"),
    "sample": ("", "number among the answers to one prompt"),
    "seed": ("", "seed of the sampling"),
    "text": ("", "the answer"),
    "tokens": ("tokens", "length of the answer"),
    "score": ("", "a judge's score"),
}
_OWN |= {
    name.format(side=side): (unit, meaning.format(side=side))
    for name, (unit, meaning) in _SIDES.items()
    for side in runs.SIDES
}


def tables_of(path: Path) -> dict[str, pd.DataFrame]:
    """Every table of a run folder or a score folder that has rows, by its name."""
    if runs.is_flags(path) and not runs.is_run(path):
        found = runs.load_flags(path)
        tables = {"scores": found.scores, "audit": found.audit}
    else:
        run = runs.load(path)
        tables = {"steps": run.steps, **{name: getattr(run, name) for name in TABLES}, "audit": runs.audits(run)}
    return {name: table for name, table in tables.items() if len(table)}


def write_files(path: Path, out: Path, kind: str) -> list[Path]:
    """Write every table of a run to `out`, a file each (kind: csv or parquet), and columns.json: what they mean.

    Numbers and texts are written whole, to the last bit; what was not measured is an empty cell. Raises UserError where
    `out` is a folder of ours, whose tables have the same names.
    """
    for place in (out.resolve(), out.resolve().parent):
        if (place / "config.json").exists() and (place == out.resolve() or out.resolve().name in TABLES):
            what = "run or of scores" if place == out.resolve() else "run's own tables"
            raise UserError(f"{out}: is a folder of a {what}. Give another folder to write to.")
    tables, about = tables_of(path), _about(path)
    if not tables:
        raise DataError(f"{path}: no table of it has rows yet; there is nothing to export.")
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for name, table in tables.items():
        made.append(out / f"{name}.{kind}")
        if kind == "parquet":
            write_frame(made[-1], table)
            continue
        with disk_errors(made[-1]):  # these line ends, so that one inside a token is quoted
            table.to_csv(made[-1], index=False, lineterminator="\r\n", encoding="utf-8")
    described = {name: {str(c): _column(table, str(c), about) for c in table} for name, table in tables.items()}
    write_json(out / COLUMNS, {"tables": described, "conventions": about.get("conventions") or {}})
    return [*made, out / COLUMNS]


def _about(path: Path) -> Mapping[str, Any]:
    """The manifest of a folder; empty where it has none."""
    file = path / "manifest.json"
    return runs.read_json(file) if file.exists() else {}


def _column(table: pd.DataFrame, name: str, about: Mapping[str, Any]) -> dict[str, str]:
    """Type, unit and meaning of a column: as the manifest describes it, else as `_OWN` does; "" where neither does, as
    for the keys of steps.jsonl, of which `conventions` speak."""
    said = (about.get("columns") or {}).get(name)
    unit, meaning = _OWN.get(name, ("", ""))
    return {"type": str(table[name].dtype), "unit": unit, "meaning": meaning} | (
        {key: str(said[key]) for key in ("label", "unit", "meaning", "prone") if key in said}
        if isinstance(said, dict)
        else {}
    )


def send(path: Path, to: str, project: str) -> tuple[int, int]:
    """Send a run to a viewer as a new run of the folder's name: the numbers of every step under that step, and as the
    table `pairs` one row a measured pair (no texts). How many steps and pairs were sent.

    Raises UserError where the viewer's package is not installed, DataError with its own words where it refuses.
    """
    try:
        package = importlib.import_module(to)
    except ImportError:
        raise UserError(f"--to {to}: its package is not installed here. Install it with: pip install {to}") from None
    run = runs.load(path)
    steps = {int(row["step"]): _scalars(row) for row in run.steps.to_dict("records")}
    pairs = _pairs(run)
    if not steps and pairs.empty:
        raise DataError(f"{path}: the log holds neither steps nor pairs; there is nothing to send.")
    try:
        _SEND[to](package, project, run, steps, pairs)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != to:
            raise
        said = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: {to} did not take it ({type(error).__name__}: {said}).") from None
    return len(steps), len(pairs)


def _scalars(row: Mapping[Any, Any]) -> dict[str, float]:
    """The numbers of a step that were measured, but not its own."""
    return {
        str(key): float(value)
        for key, value in row.items()
        if key != "step" and isinstance(value, numbers.Real) and not math.isnan(value)
    }


def _pairs(run: RunLog) -> pd.DataFrame:
    """pair_table.of_run of the probe and the held-out pairs, with their split."""
    found = [pair_table.of_run(run, split).assign(split=split) for split in ("probe", "eval")]
    found = [table for table in found if len(table)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _wandb(wandb: Any, project: str, run: RunLog, steps: dict[int, dict[str, float]], pairs: pd.DataFrame) -> None:
    with wandb.init(project=project, name=run.name, config=run.config) as sent:
        for step, scalars in steps.items():
            sent.log(scalars, step=step)
        if len(pairs):
            sent.log({"pairs": wandb.Table(dataframe=pairs)})


def _trackio(trackio: Any, project: str, run: RunLog, steps: dict[int, dict[str, float]], pairs: pd.DataFrame) -> None:
    trackio.init(project=project, name=run.name, config=run.config)
    for step, scalars in steps.items():
        trackio.log(scalars, step=step)
    if len(pairs):
        trackio.log({"pairs": trackio.Table(dataframe=pairs)}, step=max(steps, default=0))
    trackio.finish()


def _mlflow(mlflow: Any, project: str, run: RunLog, steps: dict[int, dict[str, float]], pairs: pd.DataFrame) -> None:
    mlflow.set_experiment(project)
    with mlflow.start_run(run_name=run.name):
        mlflow.log_params({key: str(value)[:500] for key, value in run.config.items()})
        for step, scalars in steps.items():
            named = {re.sub(r"[^\w./ -]", "_", key): value for key, value in scalars.items()}  # all that it takes
            mlflow.log_metrics(named, step=step)
        if len(pairs):
            mlflow.log_table(data=pairs, artifact_file="pairs.json")  # which its viewer shows, to ten decimals
            mlflow.log_table(data=pairs, artifact_file="pairs.parquet")  # whole


_SEND: dict[str, Callable[..., None]] = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
