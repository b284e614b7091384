"""Load run logs and score folders; give every row its change since the start."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tables import columns
from diagnostics import outcomes
from diagnostics.errors import DataError
from diagnostics.folder import is_aside
from diagnostics.runlog import RunLog, read_frame, read_json, read_run

SIDES = ("chosen", "rejected")
WEIGHT = 3_000_000  # bytes of frames that a section of a page holds
RUN = "CHESBOARD_RUN"  # variable of the environment: the folder that notebooks read where none is given


@dataclass(frozen=True)
class Flags:
    """A folder that `chesboard flag` wrote. scores and audit: DataFrames; audit is empty where missing. reading: how
    the rows were read, "" where not known."""

    path: Path
    scores: pd.DataFrame
    audit: pd.DataFrame
    reading: str = ""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


def is_run(path: Path) -> bool:
    """Whether the folder holds a run log."""
    return (path / "config.json").exists() and ((path / "steps.jsonl").exists() or (path / "pairs").is_dir())


def is_flags(path: Path) -> bool:
    """Whether the folder holds scores from `chesboard flag`."""
    return (path / "scores.parquet").exists()


def load(path: str | Path) -> RunLog:
    """Read one run. Raises DataError where it cannot be read, or lacks a column that every pair row needs."""
    run = read_run(path)
    needed = {"step", "split", "pair_id", "chosen_logps", "rejected_logps"}
    missing = sorted(needed - set(run.pairs.columns))
    if len(run.pairs) and missing:
        raise DataError(f"{run.path / 'pairs'}: the column {missing[0]} is missing. Run `chesboard train` again.")
    columns.learn(run.manifest)
    return run


def load_run(path: str | Path = "") -> RunLog:
    """Read one run: its config and manifest (dictionaries) and its tables (DataFrames, empty where there is none).

    path: what `chesboard train`, `trace` or a callback wrote; "" takes $CHESBOARD_RUN, else the newest run below runs/.
    The tables: steps (one row an optimizer step), pairs (one row per step, split and pair: log-probs are sums in nats),
    mass, tokens, samples and audit (one row an input row); docs/run-log.md says what is in each. Raises DataError where
    the run cannot be read, or is a folder of scores.
    """
    path = Path(path or newest(is_run, "run"))
    if is_flags(path) and not is_run(path):
        raise DataError(f"{path}: holds scores, not a run. Read it with load_scores.")
    return load(path)


def load_scores(path: str | Path = "") -> pd.DataFrame:
    """scores.parquet of a folder that `chesboard flag` wrote, a row an input row; "" takes the newest, as load_run."""
    return load_flags(path or newest(is_flags, "score folder")).scores


def newest(of_kind: Callable[[Path], bool], words: str) -> Path:
    """The folder that $CHESBOARD_RUN names, but where that is one of the other kind; else the newest of a kind below
    runs/, here or one folder up (as notebooks have it). Raises DataError where there is none."""
    given = Path(os.environ.get(RUN, ""))
    if os.environ.get(RUN) and (of_kind(given) or not (is_run(given) or is_flags(given))):
        return given
    found = [
        file
        for place in (Path("runs"), Path("../runs"))
        for file in place.rglob("config.json")
        if of_kind(file.parent) and not is_aside(file.parent)
    ]
    if not found:
        raise DataError(f"no folder is given, and there is no {words} below runs/. Give one, or set {RUN} to it.")
    return max(found, key=lambda file: file.stat().st_mtime).parent


def require(**given: Any) -> None:
    """DataError naming the first parameter of a notebook that names no folder, and how to give it."""
    for name, value in given.items():
        if not value:
            how = f'-y "{name}: [folder, folder]"' if isinstance(value, list) else f"-p {name} folder"
            raise DataError(f"{name} names no folder. Give it in the notebook's first cell, or with papermill: {how}")


def load_flags(path: str | Path) -> Flags:
    """Read one score folder. Raises DataError naming the file that cannot be read."""
    path = Path(path)
    if not is_flags(path):
        raise DataError(f"{path}: no scores.parquet in it. Give a folder that `chesboard flag` wrote.")
    scores = read_frame(path / "scores.parquet")
    missing = sorted({"pair_id", "status"} - set(scores.columns))
    if missing:
        raise DataError(f"{path / 'scores.parquet'}: the column {missing[0]} is missing. Flag the data again.")
    about = read_json(path / "manifest.json") if (path / "manifest.json").exists() else {}
    columns.learn(about)
    return Flags(path, scores, read_frame(path / "audit.parquet"), reading(about))


def reading(manifest: Any) -> str:
    """The sentence of a manifest that says how the data's rows were read; "" where it has none."""
    found = manifest.get("reading") if isinstance(manifest, dict) else None
    said = found.get("said") if isinstance(found, dict) else None
    return said if isinstance(said, str) else ""


def read_scores(path: str | Path) -> pd.DataFrame:
    """pair_id and every numeric column of the scored rows of a scores.parquet, or of the folder that holds it.

    Raises DataError, in one sentence that says why, where the file is no such table.
    """
    path = Path(path) / "scores.parquet" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file. {_GIVE}")
    try:
        scores = read_frame(path)
    except DataError:
        raise DataError(f"{path}: is no scores table, for it cannot be read as Parquet. {_GIVE}") from None
    if why := _no_scores(scores):
        raise DataError(f"{path}: is no scores table, for it has {why}. {_GIVE}")
    if (path.parent / "manifest.json").exists():
        columns.learn(read_json(path.parent / "manifest.json"))
    numbers = [c for c in scores if pd.api.types.is_numeric_dtype(scores[c]) and c != "pair_id"]
    return scores.loc[scores["status"] == "scored", ["pair_id", *numbers]].reset_index(drop=True)


_GIVE = "Give the scores.parquet that `chesboard flag` wrote."


def _no_scores(table: pd.DataFrame) -> str:
    """Why a table is none of scores; empty where it is one."""
    if not {"pair_id", "status"} <= set(table.columns):
        return "no column pair_id and status"
    if not table.columns.is_unique:
        return f"two columns {table.columns[table.columns.duplicated()][0]}"
    scored = table.loc[table["status"] == "scored", "pair_id"]
    if scored.empty:
        return "no row whose status is scored"
    return "" if all(isinstance(i, str) for i in scored) else "a pair_id that is no text"


def rows(run: RunLog, split: str) -> pd.DataFrame:
    """Pair rows of one split, with four more columns in nats:

    chosen_change, rejected_change: logps minus the same pair's logps at step 0 (where step 0 was not
    measured, minus the reference's logps); margin_change = chosen_change - rejected_change; noise: that of the run.
    """
    if run.pairs.empty:
        return pd.DataFrame(columns=["step", "pair_id", "chosen_change", "rejected_change", "margin_change"])
    found = run.pairs.loc[run.pairs["split"] == split].reset_index(drop=True)
    return add_changes(found).assign(noise=noise(run))


def noise(run: RunLog) -> float:
    """A change of a log-prob within this is no movement (see outcomes.noise)."""
    return outcomes.noise(run.manifest.get("parity"), str(run.config.get("likelihood", "tokens")))


def planned(run: RunLog) -> int:
    """How many optimizer steps the run was to take: `max_steps`, else as many as its epochs hold; 0 where the log does
    not tell."""
    given, epochs = (run.config.get(key) for key in ("max_steps", "num_train_epochs"))
    if isinstance(given, int) and given > 0:
        return given
    if not len(run.steps) or not isinstance(epochs, int | float):
        return 0
    last, done = (float(column(run.steps, name).iloc[-1]) for name in ("step", "epoch"))
    return round(epochs * last / done) if done > 0 else 0


def start(rows: pd.DataFrame, side: str = "chosen") -> float:
    """Mean likelihood of a side that the changes of these rows count from; NaN where it was not measured. rows: from
    `rows`, of one step."""
    return float((column(rows, f"{side}_logps") - column(rows, f"{side}_change")).mean())


def fell(rows: pd.DataFrame, side: str) -> pd.Series:
    """1 where a side's log-prob fell since the start (see diagnostics.outcomes, which the run log follows too), 0 where
    not, NaN where it was not measured. rows: from `rows` or `ends`."""
    return outcomes.fell(column(rows, f"{side}_change"), column(rows, "noise"))


def add_changes(pairs: pd.DataFrame) -> pd.DataFrame:
    """Add chosen_change, rejected_change and margin_change (nats) to pair rows of one split."""
    pairs = pairs.copy()
    start = pairs.loc[pairs["step"] == 0].drop_duplicates("pair_id").set_index("pair_id")
    for side in SIDES:
        before = pairs["pair_id"].map(start[f"{side}_logps"]).astype(float)
        if f"ref_{side}_logps" in pairs:
            before = before.fillna(pairs[f"ref_{side}_logps"])
        pairs[f"{side}_change"] = pairs[f"{side}_logps"] - before
    pairs["margin_change"] = pairs["chosen_change"] - pairs["rejected_change"]
    return pairs


def ends(pair_rows: pd.DataFrame) -> pd.DataFrame:
    """One row a pair: its last measurement, plus every measure at its first one as `start_<name>`."""
    if pair_rows.empty:
        return pair_rows.copy()
    ordered = pair_rows.sort_values("step", kind="stable")
    last = ordered.drop_duplicates("pair_id", keep="last").set_index("pair_id")
    first = ordered.drop_duplicates("pair_id", keep="first").set_index("pair_id")
    numbers = first.select_dtypes("number").add_prefix("start_")
    return last.join(numbers).reset_index()


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column as float64, all NaN where the table does not have it."""
    if name in frame:
        return pd.Series(frame[name].astype(float))
    return pd.Series(math.nan, index=frame.index, dtype=float)


def audits(run: RunLog) -> pd.DataFrame:
    """The audit of the data, and those of held-out and probe pairs that came from files of their own."""
    others = [read_frame(file) for file in sorted(run.path.glob("audit_*.parquet"))]
    return pd.concat([run.audit, *others], ignore_index=True) if others else run.audit


@dataclass(frozen=True)
class Pictures:
    """Frames of pairs' images and clips, as many as a page can hold: by pair_id (words, PNG). left: pairs of which the
    folder has frames and these have none, for their weight."""

    found: Mapping[str, list[tuple[str, bytes]]] = field(default_factory=dict)
    left: int = 0


def pictures(folder: Path, pair_ids: Iterable[str], weight: int = WEIGHT) -> Pictures:
    """Frames of these pairs of a run folder or a score folder, in this order, that weigh at most `weight` bytes."""
    file = folder / "frames.parquet"
    if not file.is_file():
        return Pictures()
    every: dict[str, list[tuple[str, bytes]]] = {}
    for row in read_frame(file).to_dict("records"):
        every.setdefault(str(row["pair_id"]), []).append((str(row["words"]), row["picture"]))
    asked = [i for i in dict.fromkeys(pair_ids) if i in every]
    sizes = accumulate(sum(len(png) for _, png in every[i]) for i in asked)
    found = {i: every[i] for i, size in zip(asked, sizes, strict=True) if size <= weight}
    return Pictures(found, len(asked) - len(found))


def texts(audit: pd.DataFrame) -> pd.DataFrame:
    """prompt, chosen and rejected text by pair_id; empty where the audit has none."""
    if audit.empty or not {"pair_id", "prompt", "chosen", "rejected"} <= set(audit.columns):
        return pd.DataFrame(columns=["prompt", "chosen", "rejected"])
    return audit.drop_duplicates("pair_id").set_index("pair_id").loc[:, ["prompt", "chosen", "rejected"]].fillna("")
