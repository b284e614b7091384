"""The pairs of a run: read, audited, and split into those that train, are probed, or are held out."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from diagnostics.audit import Audit, audit_pairs, skip_length_gaps
from diagnostics.diffusion.denoiser import Denoiser
from diagnostics.diffusion.read import read_samples
from diagnostics.diffusion.sample import Sample
from diagnostics.errors import DataError
from diagnostics.fingerprint import data_hash
from diagnostics.pair_file import read_once
from diagnostics.pairs import read_pairs
from diagnostics.processes import tell
from diagnostics.sequences import Example
from diagnostics.stats import PAIR
from diagnostics.vision import thumbs
from trainers import objectives
from trainers.config import TrainConfig
from trainers.loop.given import cleaned, further_rows, gather, score_gaps
from trainers.loop.ingredients import Given, by_prompt
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

    text = Texts(config, tokenizer, limit)

    def read() -> tuple[list[Example], tuple[Splits, list[int], dict[str, str]]]:
        splits, found, hashes = data(config, text.audited, text.given)
        audits.update(found)
        parts = (splits.train, splits.probe, splits.heldout)
        others = replace(splits, train=[], probe=[], heldout=[])
        return [pair for part in parts for pair in part], (others, [len(part) for part in parts], hashes)

    pairs, (splits, (train, probe, _), hashes) = read_once(read, run_dir / "pairs.arrow.tmp")
    sets = pairs[:train], pairs[train : train + probe], pairs[train + probe :]
    return replace(splits, train=sets[0], probe=sets[1], heldout=sets[2]), hashes


class Texts:
    """How the pairs of a language model are read: text, tokenized."""

    def __init__(self, config: TrainConfig, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.settings: Any = {"max_length": longest(config.max_length, limit), "truncation": config.truncation}
        self.settings["append_eos"] = config.append_eos
        self.shown: Any = {"frames": config.frames, "media_folder": config.media_folder}
        self.spans: dict[int, Any] | None = None

    def audited(self, source: str, split: str | None = None) -> tuple[Audit, str]:
        """The pairs of a source, and the hash of what was read."""
        raw = read_pairs(source, split=split, **self.shown)
        table, spans = cleaned(raw, self.config.objective)
        self.spans = spans if self.spans is None else self.spans  # of the first source, which trains
        return audit_pairs(table, self.tokenizer, **self.settings), data_hash(raw)

    def given(self, audit: Audit, train: list[Example]) -> tuple[Given, list[Example]]:
        """What the objective reads of the training pairs, and these with their further rows."""
        config, table = self.config, audit.table
        given = gather(
            table, train, self.spans or {}, self.tokenizer, config.objective,
            phrase_source=config.phrase_source, settings=self.settings,
        )  # fmt: skip
        return given, further_rows(table, train, self.tokenizer, config.objective, self.settings, **self.shown)


class Samples:
    """How the pairs of a denoiser are read: samples, each with what the model is told."""

    def __init__(self, config: TrainConfig, model: Denoiser) -> None:
        self.config, self.model = config, model

    def audited(self, source: str, split: str | None = None) -> tuple[Audit, str]:
        """The pairs of a source, and the hash of what was read."""
        audit = read_samples(
            source, self.model, split=split, folder=self.config.media_folder, chains=self.config.likelihood == "steps"
        )
        return audit, data_hash(audit.table)

    def given(self, audit: Audit, train: list[Example]) -> tuple[Given, list[Example]]:
        """What the objective reads of the training pairs: columns."""
        objective = self.config.objective
        for part in {"segments", "weights"} & set(objectives.needs(objective)):
            for pair in train:
                if any(getattr(row.media, part) is None for row in pair.rows.values()):
                    where = audit.table.where(pair.source_row)
                    raise DataError(f"{where}: objective '{objective}' reads {part}, which this row does not have.")
        return gather(audit.table, train, {}, None, objective, phrase_source="tags", settings={}), train


def data(
    config: TrainConfig,
    audited: Callable[..., tuple[Audit, str]],
    given_of: Callable[[Audit, list[Example]], tuple[Given, list[Example]]],
) -> tuple[Splits, dict[str, Any], dict[str, str]]:
    """Read, audit and split the pairs; also the audits by file name, in which every input row stands, and the hashes
    of what was read. audited: a source's pairs and its hash; given_of: what the objective reads of training pairs."""
    audit, found = audited(config.data, config.split)
    hashes = {"data": found}
    if config.max_length_gap is not None:
        audit = skip_length_gaps(audit, config.max_length_gap)
    pairs = list(audit.require_kept())
    _say(config.data, audit)
    audits = {"audit.parquet": audit.frame}
    shuffled = random.Random(config.seed).sample(pairs, len(pairs))
    if config.heldout_data:
        other, hashes["heldout_data"] = audited(config.heldout_data)
        _say(config.heldout_data, other)
        # both files may count their ids from 0: held-out ids say so
        kept = [replace(p, pair_id=f"heldout/{p.pair_id}") for p in other.require_kept()]
        audits["audit_heldout.parquet"] = other.frame.assign(pair_id="heldout/" + other.frame["pair_id"].astype(str))
        heldout = random.Random(config.seed).sample(kept, min(config.heldout_pairs, len(kept)))
    else:
        heldout = hold_out(lists_of(config.objective, shuffled), min(config.heldout_pairs, len(pairs) // 10))
    whole = any(len(some) > 1 for some in lists_of(config.objective, pairs))
    _say_held_out(config, len(heldout), len(pairs), ", in whole lists" if whole else "")
    away = {p.pair_id for p in heldout}
    probe = [p for p in shuffled if p.pair_id not in away][: config.probe_pairs]
    if config.probe_data:
        fixed, hashes["probe_data"] = audited(config.probe_data)
        _say(config.probe_data, fixed)
        audits["audit_probe.parquet"] = fixed.frame
        probe = list(fixed.require_kept())[: config.probe_pairs]
    audits |= thumbs.tables([*probe, *heldout])
    train = [p for p in pairs if p.pair_id not in away]
    given, train = given_of(audit, train)
    if further := [name for name in (train[0].rows if train else ()) if name not in PAIR]:
        names = ", ".join(further)
        tell(f"{config.data}: '{config.objective}' reads further rows, from columns of their names: {names}.")
    gaps = score_gaps(audit.table, train) if config.curriculum == "score_gap" else []
    return Splits(train, probe, heldout, given, gaps, audit.record()), audits, hashes


def lists_of(objective: str, pairs: list[Example]) -> list[list[Example]]:
    """The pairs in the lists that must not stand on both sides of a split, in the order of their first pair: pairs of
    samples of one list, pairs of one prompt where the objective compares whole lists; any other pair is alone."""
    if "lists" in objectives.needs(objective):
        return by_prompt(pairs)
    found: dict[str, list[Example]] = {}
    for pair in pairs:
        media = pair.chosen.media
        group = media.group if isinstance(media, Sample) else ""
        found.setdefault(f"list/{group}" if group else f"pair/{pair.pair_id}", []).append(pair)
    return list(found.values())


def hold_out(lists: list[list[Example]], limit: int) -> list[Example]:
    """Whole lists, from the first on, while they hold no more than `limit` pairs; one that is too long is passed by."""
    found: list[Example] = []
    for pairs in lists:
        if len(found) + len(pairs) <= limit:
            found += pairs
    return found


def _say(source: str, audit: Audit) -> None:
    """How a file's rows were read, and how many are used."""
    for line in audit.said():
        tell(f"{source}: {line}")


def _say_held_out(config: TrainConfig, held: int, pairs: int, lists: str) -> None:
    """Where fewer pairs are held out than asked for: how many, and why."""
    if held >= config.heldout_pairs:
        return
    why = (
        f"{config.heldout_data} holds no more"
        if config.heldout_data
        else f"a tenth of the {pairs} pairs at most{lists}"
    )
    give = "" if config.heldout_data else "; heldout_data names a file of others"
    tell(f"held out: {held} of the {config.heldout_pairs} pairs asked for ({why}{give}).")
