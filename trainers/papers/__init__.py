"""Paper analyses, found by listing this folder: one file = one analysis, rerun by `chesboard paper NAME`.

A file says

    SETTINGS   what is set, as the paper does and as the toy does, and why they differ; see Setting
    SEEDS      how many seeds it takes unless told otherwise
    TUNED      the seeds that were looked at while its worlds, settings and rules were set. At toy scale it takes seeds
               above them, so that no claim is judged by the numbers that its rule was made from
    DATA       what --data may be at toy scale, in words; empty: the toy builds its own data
    SCALES     where it can be run: left out, toy and paper; small is a given model of 100 M to 2 B weights, in hours
    TABLES     the tables that it gives: by name their columns, each with its type and meaning; see diagnostics.tables
    make(order, settings)  trains and measures; gives these tables
    work(order, settings)  its runs, of a given model, for the cost that is said before; see studies/paper_cost.py

`make` is given the settings of its scale by name. Its runs come from `train`, its models from `worlds`: both are
found again when they were made before, by this or by another analysis. What it gives is held against TABLES, written
as Parquet into the analysis' folder and described in its paper.json; analysis/papers/<name>.py reads these tables,
judges and draws. Published values stand in analysis/papers/<name>.yaml and nowhere else.

What analyses are made of stands in trainers/studies/paper_runs.py: `world_bases` and `given_bases` give a run for each
seed, `Trial.but` and `Trial.by` make others of it, `train` or `train_then` trains them, `measured` makes a table of
what they ended with.
"""

import json
import pkgutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd

from diagnostics.errors import DataError, UserError
from diagnostics.manifest import file_hash
from diagnostics.names import nearest, unknown
from diagnostics.runlog import read_frame, read_json, write_frame, write_json
from diagnostics.tables import Field, Fields, described, missing, typed
from trainers.studies.paper_cost import Work
from trainers.studies.paper_runs import Order, Scale

RECORD = "paper.json"  # in an analysis' folder, written last: with it the analysis is finished


AS_TOY = "as the toy"  # a setting's value at small scale unless it says another


class Setting(NamedTuple):
    """One setting. name: a key of `chesboard train`, or in words with a blank where it is none; where: the paper's
    table or appendix, or "not stated"; why: the reason for the toy's value where it is another; small, small_why: the
    value at small scale where it is not the toy's, and why."""

    name: str
    paper: Any
    where: str
    toy: Any
    why: str = ""
    small: Any = AS_TOY
    small_why: str = ""

    def at(self, scale: Scale) -> Any:
        """The value at a scale."""
        if scale == "paper":
            return self.paper
        return self.toy if scale == "toy" or self.small is AS_TOY else self.small


MINUTES = "a run takes a minute or two on a CPU"
DISPLACES = "full weights; at this rate a real model was seen to displace"
# of papers whose settings are not known here: an objective, and what is common with it
COMMON = (
    Setting("objective", "dpo", "abstract", "dpo"),
    Setting("beta", 0.1, "not read; a common choice", 0.1),
    Setting("learning_rate", 5e-7, "not read; a common choice", 3e-4,
            "models of under a million weights do not move at 5e-7", 5e-5, DISPLACES),
    Setting("optim", "adamw_torch", "not read; a common choice", "adamw_torch"),
    Setting("per_device_train_batch_size", 16, "not read; a common choice", 16, "", 4, MINUTES),
)  # fmt: skip
# of an analysis that runs on the two worlds at small scale too; see trainers.studies.paper_runs.world_bases
SMALL_WORLDS = (
    Setting("pairs of a world", None, "ours", None, "its own number", 32, MINUTES),
    Setting("rows that teach refusal", None, "ours", None, "the model is made from scratch", 288, "see docs/real.md"),
    Setting("rows that teach facts", None, "ours", None, "the model is made from scratch", 480, "24 a fact"),
    Setting("rate of teaching", None, "ours", None, "the model is made from scratch", 5e-5, "see docs/real.md"),
    Setting("max_steps", None, "the epochs decide", None),
)
# columns that many tables share
SEED = Field(int, "the run's seed")
WORLD = Field(str, "the pairs' world: facts, refusal, or given")
PAIR = Field(str, "the pair's pair_id")
# of the table that `train` gives, beside other labels
RUNS: Fields = {
    "seed": SEED,
    "run": Field(str, "the run's folder, from the folder of all analyses"),
    "failed": Field(str, "why it could not be finished; empty where it was"),
}
OF_SETTINGS: Fields = {
    "name": Field(str, "a key of `chesboard train`, or words"),
    "paper": Field(str, "the paper's value"),
    "where": Field(str, "its place in the paper"),
    "toy": Field(str, "the toy's value"),
    "why": Field(str, "the reason for another value"),
    "small": Field(str, "the value at small scale"),
    "small_why": Field(str, "the reason where it is not the toy's"),
}


def names() -> list[str]:
    """The analyses there are."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def at(scale: Scale) -> list[str]:
    """The analyses that can be run at this scale."""
    return [name for name in names() if scale in scales(load(name))]


def scales(module: ModuleType) -> Sequence[Scale]:
    """Where an analysis can be run."""
    return getattr(module, "SCALES", ("toy", "paper"))


def load(name: str) -> ModuleType:
    """The analysis of this name. Raises UserError with the nearest name where there is none."""
    if name not in names():
        raise unknown("paper", name, names())
    return import_module(f"{__name__}.{name}")


def rerun(name: str, order: Order) -> Path:
    """Make an analysis' tables in its folder, unless they are there already; returns the folder.

    With other seeds or settings, and where a table or run is damaged or gone, the tables are made anew; its runs stay.
    Raises UserError where the folder holds the analysis of another model or data.
    """
    module, folder = load(name), order.folder(name)
    settings = values(module.SETTINGS, order)
    _check(module, name, order)
    order = _seeded(module, order)
    asked, written = _asked(name, order, settings), _record(folder)
    if written and _same(written, asked, folder) and _whole(written, folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    tables = module.make(order, settings)
    declared = module.TABLES | {"settings": OF_SETTINGS}
    tables = _typed(name, tables | {"settings": table_of_settings(module.SETTINGS)}, declared)
    (folder / RECORD).unlink(missing_ok=True)  # stopped from here on, the old record must not vouch for new tables
    for table, frame in tables.items():
        write_frame(folder / f"{table}.parquet", frame)
    lost = len(tables["runs"].query("failed != ''")) if "runs" in tables else 0
    took = {
        "tables": sorted(tables),
        "columns": described(declared),
        "failed": lost,
        "seconds": written.get("seconds", 0) + time.perf_counter() - began,
    }
    write_json(folder / RECORD, asked | took)
    return folder


def work(name: str, order: Order) -> list[Work]:
    """What is to be done for an analysis of a given model; nothing where it is finished, or trains nothing. Raises as
    `rerun` does for what cannot be run."""
    module, folder = load(name), order.folder(name)
    settings = values(module.SETTINGS, order)
    _check(module, name, order)
    order = _seeded(module, order)
    order = replace(order, model=order.model or settings.get("model"))
    written = _record(folder)
    done = written and _same(written, _asked(name, order, settings), folder) and _whole(written, folder)
    return [] if done or not hasattr(module, "work") else module.work(order, settings)


def values(settings: Sequence[Setting], order: Order) -> dict[str, Any]:
    """The settings of the order's scale by name, with its changes. Raises UserError for a change of none of them, and
    for a value of another kind."""
    found = {s.name: s.at(order.scale) for s in settings}
    for name, value in order.changes.items():
        if name not in found:
            near = nearest(name, found, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise UserError(f"unknown setting '{name[:80]}': {hint}The analysis' page lists all settings.")
        kind = next((k for k in _KINDS if isinstance(found[name], k)), None)
        if kind and value is not None and not isinstance(value, kind):
            raise UserError(f"setting '{name}': {value!r} is no {_KINDS[kind]}; at this scale it is {found[name]!r}.")
    return found | dict(order.changes)


# kinds of values, in words; the first that a setting's own value is of
_KINDS: dict[Any, str] = {
    bool: "truth value", int: "whole number", (float, int): "number", str: "text", (list, tuple): "list",
    dict: "mapping",
}  # fmt: skip


def _seeded(module: ModuleType, order: Order) -> Order:
    """The order with the seeds that the analysis takes."""
    first = 0 if order.scale == "paper" else module.TUNED.stop
    return replace(order, seeds=order.seeds or module.SEEDS, first=first)


def _asked(name: str, order: Order, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What paper.json says of the order, by which a finished analysis is known again."""
    asked = {"name": name, "scale": order.scale, "seeds": order.seeds, "first seed": order.first}
    asked |= {"model": order.model, "data": order.data, "prompt form": order.form}
    content = file_hash(order.data) if order.data else None
    return json.loads(json.dumps(asked | {"settings": settings, "data content": content}))


def table_of_settings(settings: Sequence[Setting]) -> pd.DataFrame:
    """Every setting in words: its name, the paper's value and place, the toy's and the small one's."""
    rows = [s._asdict() | {"small": s.at("small")} for s in settings]
    return pd.DataFrame([{k: "" if v is None else str(v) for k, v in row.items()} for row in rows])


def _typed(name: str, tables: Mapping[str, pd.DataFrame], declared: Mapping[str, Fields]) -> dict[str, pd.DataFrame]:
    """The tables as TABLES declares them, or TypeError naming table and column."""
    odd = sorted(set(tables) ^ set(declared))
    if odd:
        raise TypeError(f"paper {name}: its table {odd[0]} is {'not declared' if odd[0] in tables else 'not made'}.")
    found = {}
    for table, frame in tables.items():
        try:
            found[table] = typed(frame, declared[table])
        except TypeError as error:
            raise TypeError(f"paper {name}: its table {table} {error}.") from None
    return found


def _check(module: ModuleType, name: str, order: Order) -> None:
    if order.scale not in scales(module):
        raise UserError(f"paper {name}: it can be run at scale {' or '.join(scales(module))}, not {order.scale}.")
    if order.scale == "small" and not order.model:
        raise UserError(f"paper {name}: at small scale give the model: a folder or a hub id.")
    if order.scale == "toy" and order.model:
        raise UserError(
            f"paper {name}: at toy scale the models are built here; leave out --model, or add --scale paper."
        )
    if order.scale == "toy" and order.form:
        raise UserError(f"paper {name}: the toy's models have no chat template; leave out --prompt-form.")
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
    known = written.get("columns", {})
    if len(tables) != len(paths) or not paths or any(missing(of, known.get(name, {})) for name, of in tables.items()):
        return False
    runs = tables.get("runs", pd.DataFrame({"run": [], "failed": []}))
    return all((folder.parent / run).is_dir() for run in runs.loc[runs["failed"] == "", "run"])


def _same(written: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> bool:
    other = sorted(k for k in asked if written.get(k) != asked[k])
    if {"model", "data"} & set(other):
        raise UserError(f"{folder}: holds this analysis with another {' and '.join(other)}. Choose another --out.")
    return not other
