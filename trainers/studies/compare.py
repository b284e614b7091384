"""The board's runs: the same model trained on the same pairs with each objective, learning rate and seed.

Every run is an ordinary run folder, made by the ordinary trainer; `board_label` in its config.json says what it is
called on the board. `board.json` is written into it last: with it the run is finished and is never run again.
"""

import contextlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from diagnostics.diffusion.read import read_samples
from diagnostics.errors import DataError, UserError
from diagnostics.fingerprint import data_hash
from diagnostics.folder import contents, set_aside
from diagnostics.manifest import file_hash
from diagnostics.names import unknown
from diagnostics.pairs import read_pairs
from diagnostics.processes import hold
from diagnostics.progress import counted, hushed
from diagnostics.runlog import read_json, read_run, write_json
from trainers import objectives
from trainers.check import check
from trainers.config import DEFAULTS, TrainConfig, make_config, parse_flags, read_config
from trainers.denoisers import load_denoiser
from trainers.run import START, train
from trainers.studies.demo import one_thread
from trainers.studies.demo_runs import PLAIN_ADAM
from trainers.worlds import facts

RATES = (1e-4, 3e-4)  # of the embedded world
RECORD = "board.json"  # in a run folder: the run is finished, and what it took
# two published comparisons: RRPO with its ablations and rivals, and LeanPO with its own
DEFAULT_OBJECTIVES = (
    *("dpo", "dpa", "tdpo2", "ddpo_dense", "rrpo", "rrpo:phrases=false", "rrpo:alpha=0"),
    *("rrpo:alpha=0.1", "rrpo:alpha=0.1:phrases=false", "simpo", "leanpo", "leanpo:dynamic=false"),
)
# the embedded world: 48 updates on 256 pairs; 64 of them and 160 held-out pairs are measured every 12 updates
SETTINGS: dict[str, Any] = PLAIN_ADAM | dict(
    num_train_epochs=3.0,
    per_device_train_batch_size=16,
    probe_pairs=64,
    heldout_pairs=facts.HELD_OUT,
    probe_every=12,
    tokens="none",
    save_model=False,
)


@dataclass(frozen=True)
class Entry:
    """One entry of --objectives. label: as given; hyperparameters: those that differ from the defaults."""

    label: str
    objective: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)


def compare(
    out: Path,
    *,
    entries: Sequence[Entry],
    seeds: int,
    learning_rates: Sequence[float],
    config: Path | None,
    jobs: int,
) -> tuple[list[Path], list[str]]:
    """Train what is not trained yet; returns the finished run folders in the order of the entries, and what failed.

    config: flat YAML of the base run; None: the embedded fact world, built here. learning_rates: none given means
    the base run's own, of the embedded world two. jobs: processes at a time; 1 is this process. Every setting is
    checked before anything is trained; a run that cannot go on (a loss that is not finite, say) is named in a
    sentence and the others go on.
    """
    bases = _given(config, seeds) if config else [_embedded(out, seed) for seed in range(seeds)]
    rates = learning_rates or ([bases[0]["learning_rate"]] if config else RATES)
    runs = plan(entries, out, bases, rates, None if config else "facts")
    with hold(out, "compare"):
        return _compare(runs, out, config, jobs)


def _compare(runs: Sequence[TrainConfig], out: Path, config: Path | None, jobs: int) -> tuple[list[Path], list[str]]:
    """Train those that are not finished, in the worlds they need."""
    todo = [run for run in runs if not is_finished(run)]
    failed: list[str] = []
    if todo:
        with workers(jobs) as pool:
            if config is None:
                worlds = {seed: _world(out, seed) for seed in sorted({run.seed for run in todo})}
                todo_worlds = [(w, facts.build, (seed,)) for seed, w in worlds.items() if not w.exists()]
                each(pool, build_whole, todo_worlds, "worlds")
            failed = train_all(pool, todo)
    done = [Path(run.output_dir) for run in runs if is_finished(run)]
    if not done:
        raise DataError(f"no run of the board could be finished. The first one said: {failed[0]}")
    return done, failed


def train_all(pool: ProcessPoolExecutor | None, runs: Sequence[TrainConfig], *, checkpoints: bool = True) -> list[str]:
    """Train those of the runs that are not finished; what went wrong, a sentence for each that cannot go on.
    checkpoints: whether a finished run keeps them."""
    todo = [(run, checkpoints) for run in runs if not is_finished(run)]
    return [said for said in each(pool, _train, todo, "runs") if said]


def parse_entries(text: str) -> list[Entry]:
    """Entries of --objectives, `name` or `name:key=value:key=value`, separated by commas.

    Raises UserError for an unknown objective or hyperparameter, and for an entry given twice.
    """
    entries = [_entry(part.strip()) for part in text.split(",") if part.strip()]
    if not entries:
        raise UserError("--objectives is empty; write for example --objectives dpo,simpo.")
    seen: list[tuple[str, dict[str, Any]]] = []
    for entry in entries:
        if (entry.objective, entry.hyperparameters) in seen:
            raise UserError(f"--objectives: '{entry.label}' stands there twice; leave one out.")
        seen.append((entry.objective, entry.hyperparameters))
    return entries


def parse_rates(text: str | None) -> list[float]:
    """Learning rates separated by commas; none for None."""
    rates = []
    for part in (text or "").split(","):
        with contextlib.suppress(ValueError):
            rates += [float(part)]
            continue
        if part.strip():
            raise UserError(f"--learning-rates: '{part.strip()}' is not a number; write for example 1e-6,5e-6.")
    if any(not 0 < rate < 1 for rate in rates) or len(set(rates)) < len(rates):
        raise UserError("--learning-rates: each must be above 0 and below 1, and none may stand there twice.")
    return rates


def plan(
    entries: Sequence[Entry],
    out: Path,
    bases: Sequence[dict[str, Any]],
    learning_rates: Sequence[float],
    world: str | None = None,
) -> list[TrainConfig]:
    """Every run of the board, checked. bases: flat keys of the base run, one a seed; world: its name, if embedded."""
    runs = []
    for entry, rate, base in product(entries, learning_rates, bases):
        folder = str(_folder(out, entry, rate, base))
        own = dict(objective=entry.objective, learning_rate=rate, output_dir=folder) | entry.hyperparameters
        runs.append(make_config(base | own, extras={"board_label": entry.label, "board_world": world}))
    for run in runs:
        check(run)
    twice = [name for name, n in Counter(run.output_dir for run in runs).items() if n > 1]
    if twice:
        raise UserError(f"--objectives: two entries would share the folder {twice[0]}; write their values differently.")
    return runs


def is_finished(run: TrainConfig) -> bool:
    """Whether the run's folder holds all its steps. Raises UserError where it was made with other settings or data."""
    folder = Path(run.output_dir)
    if not folder.exists() or (folder.is_dir() and not contents(folder)):
        return False
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: is in the way and is no run folder. Remove it, or choose another --out.")
    changed = run.changed(read_json(folder / "config.json"))
    if changed:
        raise UserError(
            f"{folder}: this run was made with other settings ({', '.join(changed)}), and a comparison must not "
            "mix them. Choose another --out, or remove that folder."
        )
    if not (folder / RECORD).is_file() or not (folder / "manifest.json").is_file():
        return False
    _same_data(run, folder)
    record = read_json(folder / RECORD)
    return "error" not in record and _last_step(folder) == record.get("steps")


def _entry(label: str) -> Entry:
    name, *parts = label.split(":")
    known = objectives.hyperparameters(name)
    bare = next((part for part in parts if "=" not in part), None)
    if bare is not None:
        raise UserError(f"--objectives: '{label}': '{bare}' has no value; write {name}:key=value.")
    values = parse_flags([f"--{part}" for part in parts])
    for key in values:
        if key not in known:
            raise UserError(f"--objectives: '{label}': {unknown('hyperparameter', key, known)}")
    return Entry(label, name, values)


def _given(path: Path, seeds: int) -> list[dict[str, Any]]:
    """The base run of a config file, one a seed, counted from its own seed. Weights are not kept unless it says so."""
    values = read_config(path)
    for key in ("objective", "output_dir", "resume"):
        if key in values:
            raise UserError(f"{path}: leave out '{key}'; the board sets it for every run.")
    theirs = {key for name in objectives.names() for key in objectives.hyperparameters(name)} & set(values)
    theirs -= {f.name for f in fields(TrainConfig)}  # the seed is every run's
    if theirs:
        key = sorted(theirs)[0]
        raise UserError(
            f"{path}: '{key}' belongs to an objective; write it there: --objectives dpo:{key}={values[key]}"
        )
    base, first = {"save_model": False, "learning_rate": DEFAULTS["learning_rate"]} | values, values.get("seed", 0)
    if not isinstance(first, int) or isinstance(first, bool):
        raise UserError(f"{path}: seed is '{first}'; it must be a whole number, the first of the board's seeds.")
    return [base | {"seed": first + k} for k in range(seeds)]


def _embedded(out: Path, seed: int) -> dict[str, Any]:
    """The base run on the fact world."""
    found = {key: str(path) for key, path in facts.paths(_world(out, seed)).items()}
    return SETTINGS | found | {"seed": seed}


def _world(out: Path, seed: int) -> Path:
    return out / "worlds" / f"facts-seed{seed}"


def build_whole(place: Path, build: Callable[..., Any], args: tuple) -> None:
    """Build a folder by `build(folder, *args)` beside its place, and move it there when it is whole."""
    half = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(half, ignore_errors=True)
    build(half, *args)
    half.rename(place)


def _train(run: TrainConfig, checkpoints: bool = True) -> str | None:
    """Train one run, or go on with it, and write its record; what went wrong, in a sentence, where it cannot go on."""
    folder = Path(run.output_dir)
    (folder / RECORD).unlink(missing_ok=True)
    begun = bool(contents(folder))
    if begun and not _is_readable(folder):
        with hold(folder, "compare"):
            set_aside(folder)
    began, cpu = time.perf_counter(), time.process_time()
    try:
        train(replace(run, resume="auto"))
    except DataError as error:
        if (folder / "config.json").exists():
            write_json(folder / RECORD, {"error": str(error)})
        return f"{folder.name}: {error}"
    if not checkpoints:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / START).unlink(missing_ok=True)  # nothing to go on from
    took = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    took = {} if begun else took  # of a run in two halves only one was timed
    write_json(folder / RECORD, {"steps": _last_step(folder)} | took)
    return None


def _is_readable(folder: Path) -> bool:
    try:
        return bool(read_run(folder))
    except DataError:
        return False


@contextlib.contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes to train in, one thread each; none for one job, which this process does itself. They end with it, also
    where it is stopped or killed: what they have logged is kept. joblib would be no shorter: which runs are done, run
    folders say, and not a cache of pickled results."""
    if jobs == 1:
        yield None
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_begin_worker) as pool:
        try:
            yield pool
        except (SystemExit, KeyboardInterrupt):
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _begin_worker() -> None:
    """One thread, no interest in Ctrl-C (the parent passes it on), and no life without the parent."""
    one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def each(pool: ProcessPoolExecutor | None, call: Callable[..., Any], tasks: Sequence[tuple], name: str) -> list[Any]:
    """Every task's result, in order, with progress under the plural `name`; the first error ends them all."""
    if not tasks:
        return []
    if pool is None:
        return [_quietly(call, *task) for task in counted(tasks, name, len(tasks), unit=name[:-1])]
    waiting = [pool.submit(_quietly, call, *task) for task in tasks]
    try:
        for done in counted(as_completed(waiting), name, len(tasks), unit=name[:-1]):
            done.result()
    finally:
        for job in waiting:
            job.cancel()
    return [job.result() for job in waiting]


def _quietly(call: Callable[..., Any], *task: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()), hushed():  # dozens of runs: the parent shows one bar instead
        return call(*task)


def _folder(out: Path, entry: Entry, rate: float, base: dict[str, Any]) -> Path:
    name = re.sub(r"[^A-Za-z0-9_.=]+", "-", entry.label)
    return out / f"{name}-lr{rate:g}-seed{base['seed']}"


def _same_data(run: TrainConfig, folder: Path) -> None:
    written = read_json(folder / "manifest.json").get("hashes", {})
    for name, path in (("data", run.data), ("probe_data", run.probe_data)):
        if name in written and path and Path(path).exists() and written[name] not in _content(path, run):
            raise UserError(
                f"{folder}: the data changed since this run was made ({path}), and a comparison must not mix them. "
                "Choose another --out, or restore the file."
            )


def _content(path: str, run: TrainConfig) -> Iterator[str]:
    """Hashes of a data set as `train` writes it: of a file its own, which is quick, else with its images and clips."""
    if known := file_hash(path):
        yield known
    if run.likelihood == "denoising":
        table = read_samples(path, load_denoiser(run.model), split=run.split, folder=run.media_folder).table
    else:
        table = read_pairs(path, split=run.split, frames=run.frames, media_folder=run.media_folder)
    yield data_hash(table)


def _last_step(folder: Path) -> int:
    """The last whole step in the log, -1 where there is none."""
    try:
        return int(json.loads((folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"])
    except (OSError, IndexError, ValueError, KeyError):
        return -1
