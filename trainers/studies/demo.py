"""The embedded default, end to end: build the worlds, flag, and train every run with the product's own trainer."""

import contextlib
import gc
import io
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from diagnostics.errors import UserError, printable
from diagnostics.flag.flagging import flag
from diagnostics.pairs import read_pairs
from diagnostics.progress import counted, hushed
from diagnostics.runlog import read_frame, read_json, write_frame, write_json
from trainers.config import make_config
from trainers.models import load_model, load_tokenizer, model_limit, quiet
from trainers.run import train
from trainers.studies.demo_runs import persona_runs, refusal_runs, refusal_world
from trainers.worlds import own_data

OWN_LEARNING_RATE = 1e-3  # high enough to show displacement in one epoch of a few hundred pairs
OWN_BATCH = 16


def run_demo(out: Path, *, seeds: int, jobs: int, persona: Path | None) -> list[Path]:
    """Build both worlds for every seed and train all their runs; returns the run and flag folders.

    jobs: processes at a time, one thread each. persona: real statements for world A instead of generated ones.
    """
    _check_new(out)
    if persona is not None and not persona.is_file():
        raise UserError(f"{persona}: no such persona file.")
    tasks = [(_refusal, out, seed, None) for seed in range(seeds)]
    tasks += [(_persona, out, seed, persona) for seed in range(seeds)]
    found: list[Path] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=one_thread) as pool:
        for done in counted(pool.map(_call, tasks), "demo", len(tasks), unit="world"):
            found += done
    return found


def run_own_data(data: str, out: Path, *, seed: int = 0) -> list[Path]:
    """Train a small LM from scratch on the data's own text, then flag the data and train on it with every log on."""
    _check_new(out)
    quiet()
    table = read_pairs(data)
    print(printable(f"building a small model from the text of {len(table.pairs)} pairs ..."))
    folder, _ = own_data.build(out / "model", table.pairs, seed)
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    flagged = out / "flag"
    flag(data, model, tokenizer, flagged, model_name=str(folder), max_length=model_limit(model))
    keys = {
        "model": str(folder),
        "data": data,
        "output_dir": str(out / "dpo"),
        "learning_rate": OWN_LEARNING_RATE,
        "per_device_train_batch_size": OWN_BATCH,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "seed": seed,
    }
    return [train(make_config(keys)), flagged]


def _persona(out: Path, seed: int, persona: Path | None) -> list[Path]:
    """World A: one pair, one answer token."""
    return [_train(run) for run in persona_runs(out, seed, persona)]


def _refusal(out: Path, seed: int, _: Path | None) -> list[Path]:
    """World D: flag all pairs, then train on all, on the kept and random fifths, and with the NLL term."""
    world = refusal_world(out, seed)
    model = load_model(str(world["model"]))
    flagged = out / f"refusal-flag-seed{seed}"
    scores, table, _audit = flag(
        str(world["data"]), model, load_tokenizer(str(world["model"])), flagged,
        model_name=str(world["model"]), max_length=model_limit(model),
    )  # fmt: skip
    write_json(flagged / "config.json", read_json(flagged / "config.json") | {"demo_seed": seed})
    kinds = {pair.pair_id: pair.columns["kind"] for pair in table.pairs}
    audit = read_frame(flagged / "audit.parquet")
    write_frame(flagged / "audit.parquet", audit.assign(kind=[kinds.get(i) for i in audit["pair_id"]]))
    runs = refusal_runs(out, seed, world, pd.Series(dict(zip(scores["pair_id"], scores["ln_ches_score"], strict=True))))
    return [*(_train(run) for run in runs), flagged]


def _train(run: dict[str, Any]) -> Path:
    labels = {key: value for key, value in run.items() if key.startswith("demo_")}
    keys = {key: value for key, value in run.items() if key not in labels}
    return train(make_config(keys, extras=labels))


def _call(task: tuple[Callable[..., list[Path]], Path, int, Path | None]) -> list[Path]:
    function, *rest = task
    with contextlib.redirect_stdout(io.StringIO()), hushed():  # dozens of runs: the parent shows one bar instead
        return function(*rest)


def one_thread() -> None:
    """Start a worker process that shares the cores with its siblings."""
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)
    quiet()
    gc.freeze()  # every training starts with a collection: it need not look at what the imports made


def _check_new(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: this folder exists already. Choose another --out, or remove it.")
