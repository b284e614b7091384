"""Tracing: the run log made afterwards, from checkpoints that any trainer wrote."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diagnostics.audit import audit_pairs
from diagnostics.engine import engine_of
from diagnostics.errors import UserError
from diagnostics.forward import prepare
from diagnostics.manifest import file_hash, manifest
from diagnostics.pairs import read_pairs
from diagnostics.progress import counted
from diagnostics.runlog import RunLogWriter, compact, drop_after, read_json, read_steps, write_frame, write_json
from trainers.config import read_track
from trainers.models import (
    adapter_base,
    config_limit,
    load_model,
    load_tokenizer,
    longest,
    pad_id,
    quiet,
    tokenizer_hash,
)
from trainers.probe import Probe
from trainers.recorder import NAN, ordered, summarise
from trainers.reference import LiveReference

RESPONSES = 16  # pairs of which further answers are followed


def trace(
    data: str,
    checkpoints: Sequence[str],
    out: str | Path,
    *,
    reference: str | None = None,
    pairs: int = 256,
    split: str | None = None,
    max_length: int | None = None,
    truncation: str = "drop",
    append_eos: bool = True,
    dtype: str = "float32",
    track: str | None = None,
    seed: int = 0,
) -> Path:
    """Measure the same pairs under every checkpoint and write a run log that `chesboard report` reads.

    checkpoints: model folders (or folders of checkpoint-* folders, or LoRA adapters), in the order of training.
    reference: the model that the log-ratios and the KL refer to; default is the first checkpoint, or its
    base model where that is an adapter. pairs: how many,
    drawn by seed. Started again with the same settings, it goes on after the last checkpoint that was measured.
    """
    quiet()
    out = Path(out)
    found = steps_of(expand(checkpoints))
    first = next(iter(found.values()))
    base = reference or adapter_base(first) or first
    settings = {
        "command": "trace", "data": data, "model": first, "reference_model": base, "checkpoints": list(found.values()),
        "output_dir": str(out), "pairs": pairs, "split": split, "max_length": max_length, "truncation": truncation,
        "append_eos": append_eos, "dtype": dtype, "track": track, "seed": seed,
    }  # fmt: skip
    done = _open(out, settings)
    tokenizer = load_tokenizer(base)
    options: Any = {
        "max_length": longest(max_length, config_limit(base)),
        "truncation": truncation,
        "append_eos": append_eos,
    }
    audit = audit_pairs(read_pairs(data, split=split), tokenizer, **options)
    audit.require_kept()
    write_frame(out / "audit.parquet", audit.frame)
    chosen = random.Random(seed).sample(audit.tokenized, min(pairs, len(audit.tokenized)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frozen = load_model(base, dtype=dtype).to(device)
    prepare(frozen)
    probe = Probe(
        {"probe": chosen}, tokenizer, pad_token_id=pad_id(tokenizer), reference=LiveReference(frozen),
        track=read_track(track) if track else None, start=out / "probe_start.safetensors",
        responses=RESPONSES, seed=seed,
    )  # fmt: skip
    write_json(out / "manifest.json", manifest(
        device=device, dtypes={"weights": dtype}, engine=engine_of(frozen).name, seeds={"seed": seed},
        hashes={"tokenizer": tokenizer_hash(tokenizer), "data": file_hash(data)},
        reference={"kind": "live", "model": base},
    ))  # fmt: skip
    _measure(out, probe, found, done, dtype, device)
    compact(out)
    return out


def expand(checkpoints: Sequence[str]) -> list[str]:
    """A folder of checkpoint-* folders stands for those, in the order of their steps."""
    found: list[str] = []
    for name in checkpoints:
        inside = (
            sorted(Path(name).glob("checkpoint-*"), key=lambda p: _number(p.name) or 0) if Path(name).is_dir() else []
        )
        found += [str(p) for p in inside] or [name]
    return found


def steps_of(checkpoints: Sequence[str]) -> dict[int, str]:
    """Step of each checkpoint: the number its name ends in, or its place in the list where a name has none."""
    if not checkpoints:
        raise UserError("no checkpoint given. Name model folders, or one folder of checkpoint-* folders.")
    first, *numbers = [_number(Path(c).name) for c in checkpoints]
    known = [n for n in numbers if n is not None]
    start = first if first is not None and first < min(known, default=first + 1) else 0
    steps = [start, *known]
    if len(steps) < len(checkpoints) or steps != sorted(set(steps)):
        steps = list(range(len(checkpoints)))
    return dict(zip(steps, checkpoints, strict=True))


def _measure(out: Path, probe: Probe, checkpoints: dict[int, str], done: set[int], dtype: str, device: str) -> None:
    writer = RunLogWriter(out)
    last = max(checkpoints)
    try:
        for step, name in counted(checkpoints.items(), "trace", len(checkpoints), unit="checkpoint"):
            if step in done:
                continue
            model = load_model(name, dtype=dtype).to(device)
            prepare(model)
            rows = probe.measure(model, step, NAN, tokens=step in (min(checkpoints), last))
            writer.append("pairs", [ordered(row) for row in rows.pairs])
            writer.append("mass", rows.mass)
            writer.append("tokens", rows.tokens)
            writer.append_step({"step": step, "epoch": NAN} | summarise(rows))
    finally:
        writer.close()


def _open(out: Path, settings: dict[str, Any]) -> set[int]:
    """A new folder, or the steps already measured in one that was started with the same settings."""
    if not (out / "config.json").exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out}: this folder exists already and is no trace. Choose another --out.")
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", settings)
        return set()
    if read_json(out / "config.json") != json.loads(json.dumps(settings)):
        raise UserError(f"{out}: holds a run with other settings. Choose another --out, or repeat its settings.")
    done = set(read_steps(out))
    drop_after(out, max(done, default=-1))  # a checkpoint cut in the middle is measured again
    return done


def _number(name: str) -> int | None:
    found = re.search(r"(\d+)$", name)
    return int(found.group(1)) if found else None
