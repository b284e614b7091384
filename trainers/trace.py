"""Tracing: the run log made afterwards, from checkpoints that any trainer wrote."""

import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diagnostics.audit import Audit, audit_pairs
from diagnostics.columns import described
from diagnostics.diffusion.denoiser import refuse
from diagnostics.diffusion.likelihood import DenoisingLikelihood
from diagnostics.diffusion.read import read_samples
from diagnostics.diffusion.steps import StepLikelihood
from diagnostics.engine import device_of, engine_of
from diagnostics.errors import DataError, UserError, printable
from diagnostics.fingerprint import data_hash, rendered_hash, tokenizer_hash, weights_hash
from diagnostics.flag.flagging import EVERY
from diagnostics.frames import FRAMES
from diagnostics.likelihood import Likelihood
from diagnostics.pairs import read_pairs
from diagnostics.processes import hold, share, tell
from diagnostics.progress import counted
from diagnostics.run_folder import RunFolder
from diagnostics.runlog import read_steps
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.vision import thumbs
from trainers import denoisers
from trainers.imported import Imported, read_logs
from trainers.layouts import expand, given, own_reference, own_step, require_weights, run_of, steps_of
from trainers.loop.columns import NAN
from trainers.loop.probe import Probe
from trainers.loop.reference import LiveReference
from trainers.loop.schedule import ProbeSchedule
from trainers.models import (
    adapter_base,
    check_model,
    config_limit,
    has_tokenizer,
    load_config,
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
    tokenizer: str | None = None,
    pairs: int = 256,
    split: str | None = None,
    frames: int = FRAMES,
    media_folder: str | None = None,
    max_length: int | None = None,
    truncation: str = "drop",
    append_eos: bool = True,
    dtype: str = "float32",
    track: str | None = None,
    seed: int = 0,
    likelihood: str = "tokens",
    draws: int = 16,
) -> Path:
    """Measure the same pairs under every checkpoint and write a run log that `chesboard report` reads.

    checkpoints: model folders, LoRA adapters, or a trainer's whole output folder (see layouts.expand), each PATH or
    PATH=STEP (see layouts.steps_of). reference: the model that the log-ratios and the KL refer to, and the start (step
    0) that every change counts from; default is what an adapter was trained from, else the first checkpoint.
    tokenizer: model whose tokenizer and chat template read the data; default is the reference. pairs: how many,
    drawn by seed. likelihood: `denoising` for denoisers, seen through `draws` fixed draws of time and noise, made from
    seed; there the checkpoints may be LoRAs or nets as diffusers' scripts save them. What the trainer logged beside the
    checkpoints becomes rows of steps.jsonl (see imported). Started again with the same settings, it goes on after the
    last checkpoint that was measured. Of several processes the first does it all.
    """
    quiet()
    if likelihood != "tokens" and (tokenizer or track):
        raise UserError(f"a denoiser has no tokens: leave {'tokenizer' if tokenizer else 'track'} out.")
    run = RunFolder(out)
    for name in filter(None, (reference, *checkpoints) if likelihood == "tokens" else ()):
        refuse(given(name)[0], "trace")
    names = expand(checkpoints)
    for name in names:
        require_weights(given(name)[0])
    own = None if reference or not names else own_reference(given(names[0])[0])
    found = steps_of(names, reference or own)
    base = found[0]
    if not reference and not own and own_step(base):
        tell(
            f"warning: no --reference: changes count from {base}, not from the model that its training began from.",
            file=sys.stderr,
        )
    settings = {
        "command": "trace", "data": data, "model": base, "reference_model": base, "checkpoints": list(found.values()),
        "steps": list(found), "output_dir": str(run.path), "pairs": pairs, "split": split, "frames": frames,
        "media_folder": media_folder, "max_length": max_length, "truncation": truncation, "append_eos": append_eos,
        "dtype": dtype, "track": track, "seed": seed,
    } | ({"tokenizer": tokenizer} if tokenizer else {})  # fmt: skip
    settings |= {"likelihood": likelihood, "draws": draws} if likelihood != "tokens" else {}
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
    begin = _language if "likelihood" not in settings else _denoising
    parts = begin(settings, found, [found[step] for step in found.keys() - done])
    frozen, audit, likelihood = parts.frozen, parts.audit, parts.likelihood
    kept = audit.require_kept()
    for line in audit.said():
        print(printable(line))
    chosen = random.Random(settings["seed"]).sample(list(kept), min(settings["pairs"], len(kept)))
    tracked = read_track(track) if track else None
    if parts.tokenizer is not None:
        _check_ids(chosen, frozen, base)
    likelihood.prepare(frozen)
    theirs = _theirs(found)
    hashes = {"model": weights_hash(frozen), "data": data_hash(audit.table), "rendered": rendered_hash(chosen)}
    hashes |= {"tokenizer": tokenizer_hash(parts.tokenizer)} if parts.tokenizer is not None else {}
    about = {"columns": described(EVERY)} | parts.about | dict(
        device=str(device_of(frozen)), dtypes={"weights": dtype}, seeds={"seed": settings["seed"]},
        hashes=hashes, reading=audit.record(), reference={"kind": "live", "model": base},
        imported={"source": theirs.source, "keys": theirs.meanings},
    )  # fmt: skip
    if done:
        run.go_on(max(done), hashes)  # a checkpoint cut in the middle is measured again
    else:
        if not run.empty:
            tell(f"{run.path}: a start that ended before it measured anything is set aside.")
        run.begin(settings, {"audit.parquet": audit.frame} | thumbs.tables(chosen))
        run.describe(**about)
    probe = Probe(
        {"probe": chosen}, parts.tokenizer, likelihood=likelihood, reference=LiveReference(frozen, likelihood),
        track=tracked, start=run.path / "probe_start.safetensors", resumed=bool(done), responses=RESPONSES,
        seed=settings["seed"],
    )  # fmt: skip
    _measure(run, probe, found, done, parts, theirs)
    run.compact()


@dataclass(frozen=True)
class Traced:
    """What depends on the kind of likelihood. frozen: the model of step 0; load: that of another checkpoint; about: for
    the manifest."""

    frozen: Any
    load: Callable[[str], nn.Module]
    audit: Audit
    likelihood: Likelihood
    tokenizer: Any = None
    about: dict[str, Any] = field(default_factory=dict)


def _language(settings: dict[str, Any], found: dict[int, str], left: Sequence[str]) -> Traced:
    """left: the checkpoints that are to be measured; what is no model is found before anything is measured."""
    base, dtype = found[0], settings["dtype"]
    for name in left:
        check_model(name)
        _check_vocabulary(name, base)
    tokenizer = _tokenizer(settings.get("tokenizer"), found)
    table = read_pairs(settings["data"], **{key: settings[key] for key in ("split", "frames", "media_folder")})
    audit = audit_pairs(
        table, tokenizer, max_length=longest(settings["max_length"], config_limit(base)),
        truncation=settings["truncation"], append_eos=settings["append_eos"],
    )  # fmt: skip

    def load(name: str) -> Any:
        return load_model(name, dtype=dtype)

    audit.require_kept()
    frozen = _to_device(load(base), dtype)
    about = {"engine": engine_of(frozen).name}
    return Traced(frozen, load, audit, TokenLikelihood.of(tokenizer), tokenizer, about)


def _denoising(settings: dict[str, Any], found: dict[int, str], left: Sequence[str]) -> Traced:
    """See _language."""
    base, dtype = found[0], settings["dtype"]
    for name in left:
        denoisers.check_checkpoint(name)
    chains = settings["likelihood"] == "steps"
    likelihood = StepLikelihood() if chains else DenoisingLikelihood(draws=settings["draws"], seed=settings["seed"])
    cache = Path(settings["output_dir"]).parent / "latents"
    frozen = _to_device(denoisers.load_denoiser(base, dtype=dtype, cache=cache), dtype)
    how: Any = {"split": settings["split"], "folder": settings["media_folder"], "chains": chains}
    audit = read_samples(settings["data"], frozen, **how)

    def load(name: str) -> nn.Module:
        return denoisers.load_checkpoint(name, frozen, dtype=dtype)

    about = {"engine": denoisers.ENGINE, "conventions": denoisers.conventions(likelihood.kind)}
    about["columns"] = denoisers.columns(likelihood.kind)
    about["likelihood"] = denoisers.about(frozen, likelihood)
    return Traced(frozen, load, audit, likelihood, None, about)


def _to_device(model: nn.Module, dtype: str) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    warn_if_slow(dtype, device)
    return model.to(device)


def _tokenizer(asked: str | None, found: dict[int, str]) -> Any:
    """The tokenizer that reads the data: the one asked for, else the reference's. Warns where the reference's, or the
    last checkpoint's, is another one."""
    base, last = found[0], found[max(found)]
    used = load_tokenizer(asked or base)
    other = base if asked else last
    if other != (asked or base) and has_tokenizer(other):
        differs = _differences(used, load_tokenizer(other))
        hint = "" if asked else f" Where training read the data with it, give --tokenizer {last}."
        if differs:
            tell(
                f"warning: the data is read with the tokenizer of {asked or base}; that of {other} has another "
                f"{' and '.join(differs)}.{hint}",
                file=sys.stderr,
            )
    return used


def _differences(one: Any, other: Any) -> list[str]:
    """What two tokenizers do not share."""
    parts = {
        "vocabulary": lambda t: t.get_vocab(),
        "set of special tokens": lambda t: {k: str(v) for k, v in t.special_tokens_map.items() if k != "pad_token"},
        "chat template": lambda t: t.chat_template,
    }
    return [name for name, part in parts.items() if part(one) != part(other)]


def _check_ids(pairs: Sequence[Any], model: Any, base: str) -> None:
    """UserError for a tokenizer that writes tokens which the reference does not know."""
    known = model.get_input_embeddings().weight.shape[0]
    most = max(max((*p.prompt_ids, *row.completion_ids), default=0) for p in pairs for row in p.rows.values())
    if most >= known:
        raise UserError(
            f"the tokenizer writes token {most}, but the reference {base} has {known} embeddings. Give as --reference "
            "the model whose embeddings were resized for it."
        )


def _check_vocabulary(name: str, base: str) -> None:
    """DataError for a checkpoint over another vocabulary than the reference's: their distributions have no KL."""
    ours, theirs = _vocabulary(base), _vocabulary(name)
    if ours != theirs:
        raise DataError(
            f"{name}: has a vocabulary of {theirs} tokens, and the reference {base} one of {ours}. Give as --reference "
            "the model that training began from, with its embeddings resized as they were then."
        )


def _vocabulary(name: str) -> int | None:
    base = adapter_base(name)
    return getattr(load_config(name).get_text_config(), "vocab_size", None) if base is None else _vocabulary(base)


def _theirs(found: dict[int, str]) -> Imported:
    """What the trainer of these checkpoints logged, where they are of one run and at its own steps."""
    rest = [(step, name) for step, name in found.items() if step]
    runs = {run_of(name) for _, name in rest}
    if len(runs) != 1 or any(own_step(name) != step for step, name in rest):
        return Imported()
    run, base = runs.pop(), found[0]
    theirs = read_logs(run, [name for _, name in rest])
    if run_of(base) == run and Path(base).name != "ref":  # a checkpoint of the same run, which starts there here
        theirs.rows = {step: row for step, row in theirs.rows.items() if step > (own_step(base) or 0)}
    if theirs.source:
        tell(f"{theirs.source}: what the trainer logged is kept beside, as {', '.join(theirs.meanings)}.")
    return theirs


def _measure(
    run: RunFolder,
    probe: Probe,
    checkpoints: dict[int, str],
    done: set[int],
    parts: Traced,
    theirs: Imported,
) -> None:
    """Every checkpoint that is not done, and what the trainer logged before it."""
    writer, last = run.writer(), max(checkpoints)
    before = max(done, default=0)
    schedule = ProbeSchedule(writer, probe, every=1, tokens="ends", noise=0.0)
    try:
        for step, name in counted(checkpoints.items(), "trace", len(checkpoints), unit="checkpoint"):
            if step in done:
                continue
            model = parts.frozen
            if step:
                model = nn.Module.to(parts.load(name), device_of(parts.frozen))
                probe.likelihood.prepare(model)
            row = {"step": step, "epoch": NAN} | schedule.at(model, step, NAN, last=step == last)
            for logged in theirs.between(before, step):
                writer.append_step(logged)
            writer.append_step(row | theirs.rows.get(step, {}))
            before = step
    finally:
        writer.close()


def _look(run: RunFolder, settings: dict[str, Any]) -> set[int]:
    """The steps already measured in a folder that was started with the same settings; none in a new one."""
    if run.empty:
        return set()
    if not run.is_run:
        raise UserError(f"{run.path}: this folder exists already and is no trace. Choose another --out.")
    done = _measured(run)
    if run.config.get("command") == "trace" and not done:
        return set()  # a start that measured nothing
    if run.config != json.loads(json.dumps(settings)):
        raise UserError(f"{run.path}: holds a run with other settings. Choose another --out, or repeat its settings.")
    return done


def _measured(run: RunFolder) -> set[int]:
    """The steps of the log that were measured, and not only logged by the trainer."""
    return {step for step, row in read_steps(run.path).items() if any(key.startswith("probe/") for key in row)}
