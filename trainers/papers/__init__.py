"""Paper analyses, found by listing this folder: one file = one analysis, rerun by `chesboard paper NAME`.

A file says

    SETTINGS   what is set, as the paper does and as the toy does, and why they differ; see Setting
    SEEDS      how many seeds it takes unless told otherwise
    TUNED      the seeds that were looked at while its worlds, settings and rules were set. At toy scale it takes seeds
               above them, so that no claim is judged by the numbers that its rule was made from
    DATA       what --data may be at toy scale, in words; empty: the toy builds its own data
    make(order, settings)  trains and measures; gives its tables by name

`make` is given the settings of its scale by name. Its runs come from `train`, its models from `worlds`: both are
found again when they were made before, by this or by another analysis. Every table is written as Parquet into the
analysis' folder, where analysis/papers/<name>.py judges and draws it. Published values stand in
analysis/papers/<name>.yaml and nowhere else.
"""

import hashlib
import json
import pkgutil
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import pandas as pd

from diagnostics.errors import DataError, UserError
from diagnostics.manifest import file_hash
from diagnostics.measures import unknown
from diagnostics.pairs import read_pairs, write_rows
from diagnostics.runlog import read_frame, read_json, write_frame, write_json
from trainers.config import make_config
from trainers.studies.compare import build_whole, each, is_finished, train_all

RECORD = "paper.json"  # in an analysis' folder, written last: with it the analysis is finished

Scale = Literal["toy", "paper"]
Build = Callable[..., Any]


class Setting(NamedTuple):
    """One setting. name: a key of `chesboard train`, or in words with a blank where it is none; where: the paper's
    table or appendix, or "not stated"; why: the reason for the toy's value where it is another."""

    name: str
    paper: Any
    where: str
    toy: Any
    why: str = ""


@dataclass(frozen=True)
class Order:
    """What was asked for. out: the folder of all analyses, their runs and worlds; changes: settings by name that
    differ from those of the scale (a seconds-long test, say); pool: processes to train in, None for this one; first:
    the first seed."""

    scale: Scale
    out: Path
    seeds: int | None = None
    model: str | None = None
    data: str | None = None
    pool: ProcessPoolExecutor | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    first: int = 0

    @property
    def numbers(self) -> range:
        """The seeds."""
        return range(self.first, self.first + (self.seeds or 0))

    def folder(self, name: str) -> Path:
        """Where an analysis of this scale lies."""
        return self.out / (name if self.scale == "toy" else f"{name}-{self.scale}")


@dataclass(frozen=True)
class Trial:
    """One run that an analysis needs. labels: what it is called there (seed, case ...): columns of the table of runs;
    keys: flat keys of `chesboard train` without output_dir."""

    labels: dict[str, Any]
    keys: dict[str, Any]


def names() -> list[str]:
    """The analyses there are."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The analysis of this name. Raises UserError with the nearest name where there is none."""
    if name not in names():
        raise UserError(unknown("paper", name, names()))
    return import_module(f"{__name__}.{name}")


def rerun(name: str, order: Order) -> Path:
    """Make an analysis' tables in its folder, unless they are there already; returns the folder.

    With other seeds or settings, and where a table or run is damaged or gone, the tables are made anew; its runs stay.
    Raises UserError where the folder holds the analysis of another model or data.
    """
    module, folder = load(name), order.folder(name)
    settings = values(module.SETTINGS, order)
    _check(module, name, order)
    seeds, first = order.seeds or module.SEEDS, module.TUNED.stop if order.scale == "toy" else 0
    asked = {"name": name, "scale": order.scale, "seeds": seeds, "first seed": first}
    asked |= {"model": order.model, "data": order.data}
    content = file_hash(order.data) if order.data else None
    asked = json.loads(json.dumps(asked | {"settings": settings, "data content": content}))
    written = _record(folder)
    if written and _same(written, asked, folder) and _whole(written, folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    tables = module.make(replace(order, seeds=seeds, first=first), settings)
    tables |= {"settings": table_of_settings(module.SETTINGS)}
    (folder / RECORD).unlink(missing_ok=True)  # stopped from here on, the old record must not vouch for new tables
    for table, frame in tables.items():
        write_frame(folder / f"{table}.parquet", frame)
    lost = int((tables["runs"]["failed"] != "").sum()) if "runs" in tables else 0
    took = {
        "tables": sorted(tables),
        "failed": lost,
        "seconds": written.get("seconds", 0) + time.perf_counter() - began,
    }
    write_json(folder / RECORD, asked | took)
    return folder


def values(settings: Sequence[Setting], order: Order) -> dict[str, Any]:
    """The settings of the order's scale by name, with its changes. Raises UserError for a change of none of them."""
    found = {s.name: s.toy if order.scale == "toy" else s.paper for s in settings}
    for name in order.changes:
        if name not in found:
            raise UserError(unknown("setting", name, list(found)))
    return found | dict(order.changes)


def keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that are keys of `chesboard train`: the names without a blank, where a value is set."""
    return {name: value for name, value in settings.items() if name.isidentifier() and value is not None}


def table_of_settings(settings: Sequence[Setting]) -> pd.DataFrame:
    """Every setting in words: its name, the paper's value and place, the toy's value and the reason."""
    return pd.DataFrame([{k: "" if v is None else str(v) for k, v in s._asdict().items()} for s in settings])


def worlds(order: Order, wanted: Mapping[str, tuple[Build, tuple]]) -> dict[str, Path]:
    """Build the small models and data sets that are not there yet; their folders by name.

    wanted: name -> (function, arguments); the function gets a new folder first and stands at a module's top. The name
    must say everything that the world depends on, since analyses share worlds by it.
    """
    found = {name: order.out / "worlds" / name for name in wanted}
    todo = [(found[name], *how) for name, how in wanted.items() if not found[name].exists()]
    each(order.pool, build_whole, todo, "worlds")
    return found


def train(order: Order, trials: Sequence[Trial]) -> pd.DataFrame:
    """Train what is not trained yet; one row a trial: its labels, `run` (folder, relative to the order's `out`), and
    `failed` (why it could not be finished, else empty). Trials with the same keys are one run."""
    folders = [_run_folder(order, trial.keys) for trial in trials]
    runs = {f: make_config(t.keys | {"output_dir": str(f)}) for f, t in zip(folders, trials)}
    said = train_all(order.pool, list(runs.values()))
    missing = {f for f, run in runs.items() if not is_finished(run)}
    if len(missing) == len(runs):
        raise DataError(f"no run of the analysis could be finished. The first one said: {said[0]}")
    rows = [
        t.labels | {"run": f.relative_to(order.out).as_posix(), "failed": "could not be finished" * (f in missing)}
        for f, t in zip(folders, trials)
    ]
    return pd.DataFrame(rows)


def subset(order: Order, name: str, data: str, pair_ids: Sequence[str], split: str | None = None) -> str:
    """Write some of a data set's pairs, in its own order and format, to out/data/; the path for the key `data`.

    name: says what the subset is; a run is found again by it, so it must name everything that it depends on.
    """
    table = read_pairs(data, split=split)
    rows = {p.pair_id: p.source_row for p in table.pairs}
    path = order.out / "data" / f"{name}.{table.raw.kind if table.raw.kind != 'hub' else 'jsonl'}"
    write_rows(table, sorted(rows[i] for i in pair_ids), path)
    return str(path)


def measure(order: Order, call: Callable[..., Any], tasks: Sequence[tuple], name: str = "measurements") -> list[Any]:
    """Every task's result, in order, on as many processes as the order has; `call` stands at a module's top."""
    return each(order.pool, call, tasks, name)


def _run_folder(order: Order, given: Mapping[str, Any]) -> Path:
    """Named by objective, seed and a hash of everything else, with paths relative to the order's folder."""
    root = str(order.out)
    told = {k: str(v).replace(root, "") if isinstance(v, str | Path) else v for k, v in given.items()}
    short = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:12]
    objective = re.sub(r"[^a-z0-9_]+", "-", str(given.get("objective", "dpo")))
    return order.out / "runs" / f"{objective}-seed{given.get('seed', 0)}-{short}"


def _check(module: ModuleType, name: str, order: Order) -> None:
    if order.scale == "toy" and order.model:
        raise UserError(
            f"paper {name}: at toy scale the models are built here; leave out --model, or add --scale paper."
        )
    if order.scale == "toy" and order.data and not module.DATA:
        raise UserError(f"paper {name}: at toy scale the data are built here; leave out --data, or add --scale paper.")


def _record(folder: Path) -> dict[str, Any]:
    """What a finished analysis' folder says of itself; empty where there is none, or a damaged one."""
    try:
        return read_json(folder / RECORD)
    except DataError:
        return {}


def _whole(written: Mapping[str, Any], folder: Path) -> bool:
    """Whether every table can be read, and every run that they name is there; not where a run could not be finished,
    which is tried again."""
    if written.get("failed"):
        return False
    paths = {name: folder / f"{name}.parquet" for name in written.get("tables", [])}
    try:
        tables = {name: read_frame(path) for name, path in paths.items() if path.is_file()}
    except DataError:
        return False
    runs = tables.get("runs", pd.DataFrame({"run": [], "failed": []}))
    finished = runs.loc[runs["failed"] == "", "run"]
    return len(tables) == len(paths) > 0 and all((folder.parent / run).is_dir() for run in finished)


def _same(written: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> bool:
    other = sorted(k for k in asked if written.get(k) != asked[k])
    if {"model", "data"} & set(other):
        raise UserError(f"{folder}: holds this analysis with another {' and '.join(other)}. Choose another --out.")
    return not other
