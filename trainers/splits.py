"""The pairs of a run: read, audited, and split into those that train, are probed, or are held out."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from diagnostics.audit import Audit, audit_pairs, skip_length_gaps
from diagnostics.fingerprint import data_hash
from diagnostics.pair_file import read_once
from diagnostics.pairs import read_pairs
from diagnostics.processes import tell
from diagnostics.sequences import Example
from diagnostics.stats import PAIR
from diagnostics.vision import thumbs
from trainers.config import TrainConfig
from trainers.loop.given import cleaned, further_rows, gather, score_gaps
from trainers.loop.ingredients import Given
from trainers.models import longest


@dataclass(frozen=True)
class Splits:
    """Which pairs train, which are probed (training pairs, unless probe_data says which), and which are held out."""

    train: list[Example]
    probe: list[Example]
    heldout: list[Example]
    given: Given
    gaps: list[float]  # score gaps of the training pairs; empty unless a curriculum orders them
    reading: dict[str, Any]  # how the data's rows were read


def read_splits(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    run_dir: Path,
    audits: dict[str, Any],
) -> tuple[Splits, dict[str, str]]:
    """The pairs of a run and the hashes of what was read, once however many processes there are. audits: filled in the
    first process only, by file name: every input row stands in one of them."""

    def read() -> tuple[list[Example], tuple[Splits, list[int], dict[str, str]]]:
        splits, found, hashes = _data(config, tokenizer, limit)
        audits.update(found)
        parts = (splits.train, splits.probe, splits.heldout)
        others = replace(splits, train=[], probe=[], heldout=[])
        return [pair for part in parts for pair in part], (others, [len(part) for part in parts], hashes)

    pairs, (splits, (train, probe, _), hashes) = read_once(read, run_dir / "pairs.arrow.tmp")
    sets = pairs[:train], pairs[train : train + probe], pairs[train + probe :]
    return replace(splits, train=sets[0], probe=sets[1], heldout=sets[2]), hashes


def _data(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> tuple[Splits, dict[str, Any], dict[str, str]]:
    """Read, audit and split the pairs; also the audits by file name, in which every input row stands, and the hashes
    of what was read."""
    settings: Any = {"max_length": longest(config.max_length, limit), "truncation": config.truncation}
    settings["append_eos"] = config.append_eos
    shown: Any = {"frames": config.frames, "media_folder": config.media_folder}
    raw = read_pairs(config.data, split=config.split, **shown)
    hashes = {"data": data_hash(raw)}
    table, spans = cleaned(raw, config.objective)
    audit = audit_pairs(table, tokenizer, **settings)
    if config.max_length_gap is not None:
        audit = skip_length_gaps(audit, config.max_length_gap)
    pairs = list(audit.require_kept())
    _say(config.data, audit)
    audits = {"audit.parquet": audit.frame}
    shuffled = random.Random(config.seed).sample(pairs, len(pairs))
    if config.heldout_data:
        raw = read_pairs(config.heldout_data, **shown)
        hashes["heldout_data"] = data_hash(raw)
        other = audit_pairs(cleaned(raw, config.objective)[0], tokenizer, **settings)
        _say(config.heldout_data, other)
        # both files may count their ids from 0: held-out ids say so
        kept = [replace(p, pair_id=f"heldout/{p.pair_id}") for p in other.require_kept()]
        audits["audit_heldout.parquet"] = other.frame.assign(pair_id="heldout/" + other.frame["pair_id"].astype(str))
        heldout = random.Random(config.seed).sample(kept, min(config.heldout_pairs, len(kept)))
    else:
        heldout = shuffled[: min(config.heldout_pairs, len(pairs) // 10)]
    _say_held_out(config, len(heldout), len(pairs))
    away = {p.pair_id for p in heldout}
    probe = [p for p in shuffled if p.pair_id not in away][: config.probe_pairs]
    if config.probe_data:
        raw = read_pairs(config.probe_data, **shown)
        hashes["probe_data"] = data_hash(raw)
        fixed = audit_pairs(cleaned(raw, config.objective)[0], tokenizer, **settings)
        _say(config.probe_data, fixed)
        audits["audit_probe.parquet"] = fixed.frame
        probe = list(fixed.require_kept())[: config.probe_pairs]
    if len(pictures := thumbs.table([*probe, *heldout])):
        audits["frames.parquet"] = pictures
    train = [p for p in pairs if p.pair_id not in away]
    given = gather(
        table, train, spans, tokenizer, config.objective, phrase_source=config.phrase_source, settings=settings
    )
    train = further_rows(table, train, tokenizer, config.objective, settings, **shown)
    if further := [name for name in (train[0].rows if train else ()) if name not in PAIR]:
        names = ", ".join(further)
        tell(f"{config.data}: '{config.objective}' reads further rows, from columns of their names: {names}.")
    gaps = score_gaps(table, train) if config.curriculum == "score_gap" else []
    return Splits(train, probe, heldout, given, gaps, audit.record()), audits, hashes


def _say(source: str, audit: Audit) -> None:
    """How a file's rows were read, and how many are used."""
    for line in audit.said():
        tell(f"{source}: {line}")


def _say_held_out(config: TrainConfig, held: int, pairs: int) -> None:
    """Where fewer pairs are held out than asked for: how many, and why."""
    if held >= config.heldout_pairs:
        return
    why = f"{config.heldout_data} holds no more" if config.heldout_data else f"a tenth of the {pairs} pairs at most"
    give = "" if config.heldout_data else "; heldout_data names a file of others"
    tell(f"held out: {held} of the {config.heldout_pairs} pairs asked for ({why}{give}).")
