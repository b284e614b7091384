"""Tracing: the run log made afterwards, from checkpoints that any trainer wrote."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diagnostics.audit import audit_pairs
from diagnostics.columns import described
from diagnostics.engine import device_of, engine_of
from diagnostics.errors import UserError, printable
from diagnostics.fingerprint import data_hash, rendered_hash, tokenizer_hash, weights_hash
from diagnostics.flag.flagging import EVERY
from diagnostics.frames import FRAMES
from diagnostics.pairs import read_pairs
from diagnostics.processes import hold, share, tell
from diagnostics.progress import counted
from diagnostics.run_folder import RunFolder
from diagnostics.runlog import read_json
from diagnostics.token_likelihood import TokenLikelihood
from trainers.loop.columns import NAN
from trainers.loop.probe import Probe
from trainers.loop.reference import LiveReference
from trainers.loop.schedule import ProbeSchedule
from trainers.models import (
    adapter_base,
    config_limit,
    load_model,
    load_tokenizer,
    longest,
    quiet,
    warn_if_slow,
)
from trainers.track import read_track

RESPONSES = 16  # pairs of which further answers are followed


def trace(
    data: str,
    checkpoints: Sequence[str],
    out: str | Path,
    *,
    reference: str | None = None,
    pairs: int = 256,
    split: str | None = None,
    frames: int = FRAMES,
    max_length: int | None = None,
    truncation: str = "drop",
    append_eos: bool = True,
    dtype: str = "float32",
    track: str | None = None,
    seed: int = 0,
) -> Path:
    """Measure the same pairs under every checkpoint and write a run log that `chesboard report` reads.

    checkpoints: model folders (or folders of checkpoint-* folders, or LoRA adapters), each PATH or PATH=STEP (see
    steps_of). reference: the model that the log-ratios and the KL refer to, and the start (step 0) that every change
    counts from; default is the first checkpoint, or its base model where that is an adapter. pairs: how many, drawn by
    seed. Started again with the same settings, it goes on after the last checkpoint that was measured. Of several
    processes the first does it all.
    """
    quiet()
    run = RunFolder(out)
    names = expand(checkpoints)
    found = steps_of(names, reference or (adapter_base(_given(names[0])[0]) if names else None))
    base = found[0]
    settings = {
        "command": "trace", "data": data, "model": base, "reference_model": base, "checkpoints": list(found.values()),
        "steps": list(found), "output_dir": str(run.path), "pairs": pairs, "split": split, "frames": frames,
        "max_length": max_length, "truncation": truncation, "append_eos": append_eos, "dtype": dtype,
        "track": track, "seed": seed,
    }  # fmt: skip
    with hold(run.path, "trace"):
        share(lambda: _trace(run, found, settings))
    return run.path


def _trace(run: RunFolder, found: dict[int, str], settings: dict[str, Any]) -> None:
    """Read everything that can be wrong, then measure what is not measured yet."""
    done = _look(run, settings)
    if done >= set(found):
        run.compact()
        tell(f"{run.path}: all {len(found)} checkpoints are measured; nothing is left to do.")
        return
    base, dtype, track = found[0], settings["dtype"], settings["track"]
    tell(f"step 0 is the reference, {base}; the checkpoints are of step {', '.join(str(s) for s in found if s)}.")
    for step in found.keys() - done:
        config_limit(found[step])  # what is no model is found before anything is measured
    tokenizer = load_tokenizer(base)
    table = read_pairs(settings["data"], split=settings["split"], frames=settings["frames"])
    audit = audit_pairs(
        table, tokenizer, max_length=longest(settings["max_length"], config_limit(base)),
        truncation=settings["truncation"], append_eos=settings["append_eos"],
    )  # fmt: skip
    kept = audit.require_kept()
    for line in audit.said():
        print(printable(line))
    chosen = random.Random(settings["seed"]).sample(list(kept), min(settings["pairs"], len(kept)))
    tracked = read_track(track) if track else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    warn_if_slow(dtype, device)
    frozen: Any = load_model(base, dtype=dtype).to(device)  # pyright: ignore[reportArgumentType]
    likelihood = TokenLikelihood.of(tokenizer)
    likelihood.prepare(frozen)
    hashes = {
        "model": weights_hash(frozen), "tokenizer": tokenizer_hash(tokenizer), "data": data_hash(table),
        "rendered": rendered_hash(chosen),
    }  # fmt: skip
    about = dict(
        device=device, dtypes={"weights": dtype}, engine=engine_of(frozen).name, seeds={"seed": settings["seed"]},
        hashes=hashes, reading=audit.record(), reference={"kind": "live", "model": base},
        columns=described(EVERY),
    )  # fmt: skip
    if done:
        run.go_on(max(done), hashes)  # a checkpoint cut in the middle is measured again
    else:
        if not run.empty:
            tell(f"{run.path}: a start that ended before it measured anything is set aside.")
        run.begin(settings, {"audit.parquet": audit.frame})
        run.describe(**about)
    probe = Probe(
        {"probe": chosen}, tokenizer, likelihood=likelihood, reference=LiveReference(frozen, likelihood), track=tracked,
        start=run.path / "probe_start.safetensors", resumed=bool(done), responses=RESPONSES, seed=settings["seed"],
    )  # fmt: skip
    _measure(run, probe, found, done, dtype, frozen)
    run.compact()


def expand(checkpoints: Sequence[str]) -> list[str]:
    """A folder of checkpoint-* folders, or one that is no model and holds models, stands for those."""
    found: list[str] = []
    for name in checkpoints:
        inside = sorted(Path(name).glob("checkpoint-*")) if Path(name).is_dir() else []
        if not inside and Path(name).is_dir() and not _is_model(Path(name)):
            inside = sorted(p for p in Path(name).iterdir() if p.is_dir() and _is_model(p))
        found += [str(p) for p in inside] or [name]
    return found


def steps_of(checkpoints: Sequence[str], reference: str | None = None) -> dict[int, str]:
    """Checkpoint by step, in the order of their steps. Step 0 is the reference: by default the first checkpoint.

    The step of the others: what is written behind the path, PATH=STEP; else what its trainer_state.json says; else the
    number after a word for steps anywhere in its path (checkpoint-100, global_step2_hf, step_100, or 100 alone); else,
    where none has a step, that of its epoch. UserError naming a checkpoint of which no step is known, or two of one.
    """
    if not checkpoints:
        raise UserError("no checkpoint given. Name model folders, or one folder of checkpoint-* folders.")
    given = [_given(name) for name in checkpoints]
    base = reference or given[0][0]
    rest = [(name, step) for name, step in given if not _same_place(name, base)]
    steps = [step if step is not None else _step(name) for name, step in rest]
    if rest and all(step is None for step in steps):
        steps = [_epoch(name) for name, _ in rest]
    found = {0: base}
    for (name, _), step in zip(rest, steps, strict=True):
        if step is None:
            raise UserError(f"{name}: of which step is this? Write it behind the path: --checkpoints {name}=STEP")
        if step in found:
            more = f" Step 0 is the reference, {base}." if step == 0 else ""
            raise UserError(f"{name} and {found[step]} are both of step {step}.{more} Write --checkpoints PATH=STEP.")
        found[step] = name
    return dict(sorted(found.items()))


def _measure(
    run: RunFolder, probe: Probe, checkpoints: dict[int, str], done: set[int], dtype: str, frozen: Any
) -> None:
    """Every checkpoint that is not done. frozen: the one of step 0, loaded as the reference already."""
    writer, last = run.writer(), max(checkpoints)
    schedule = ProbeSchedule(writer, probe, every=1, tokens="ends", noise=0.0)
    try:
        for step, name in counted(checkpoints.items(), "trace", len(checkpoints), unit="checkpoint"):
            if step in done:
                continue
            model = frozen
            if step:
                model = nn.Module.to(load_model(name, dtype=dtype), device_of(frozen))
                probe.likelihood.prepare(model)
            writer.append_step({"step": step, "epoch": NAN} | schedule.at(model, step, NAN, last=step == last))
    finally:
        writer.close()


def _look(run: RunFolder, settings: dict[str, Any]) -> set[int]:
    """The steps already measured in a folder that was started with the same settings; none in a new one."""
    if run.empty:
        return set()
    if not run.is_run:
        raise UserError(f"{run.path}: this folder exists already and is no trace. Choose another --out.")
    if run.config.get("command") == "trace" and not run.steps:
        return set()  # a start that measured nothing
    if run.config != json.loads(json.dumps(settings)):
        raise UserError(f"{run.path}: holds a run with other settings. Choose another --out, or repeat its settings.")
    return run.steps


def _given(name: str) -> tuple[str, int | None]:
    """PATH=STEP in two; a folder whose name looks like that is a folder."""
    found = re.fullmatch(r"(.+)=(\d+)", name)
    return (found[1], int(found[2])) if found and not Path(name).exists() else (name, None)


def _step(name: str) -> int | None:
    """The optimizer step of a checkpoint, by its trainer_state.json or its path."""
    state = Path(name) / "trainer_state.json"
    if state.is_file():
        step = read_json(state).get("global_step")
        if isinstance(step, int):
            return step
    last = Path(name).name
    return (
        int(last) if last.isdecimal() else _numbered(name, r"(?:checkpoint|ckpt|(?:global[_-]?)?step|iter|iteration)")
    )


def _epoch(name: str) -> int | None:
    return _numbered(name, "epoch")


def _numbered(name: str, word: str) -> int | None:
    """The number after a word in a path; that of its last part which has one."""
    for part in reversed(Path(name).parts):
        found = re.findall(rf"(?<![a-z]){word}[-_= ]?(\d+)(?![a-z\d])", part.lower())
        if found:
            return int(found[-1])
    return None


def _same_place(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def _is_model(path: Path) -> bool:
    return (path / "config.json").exists() or (path / "adapter_config.json").exists()
