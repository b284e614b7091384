"""The pairs to measure in somebody else's trainer: token ids as its own batches hold them, or pairs that are given."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, IterableDataset

from diagnostics import sequences
from diagnostics.audit import audit_pairs, frame_of
from diagnostics.codes import SKIPS
from diagnostics.engine import unwrap
from diagnostics.errors import DataError, UserError
from diagnostics.pairs import PairTable, RawRows, pairs_of, read_pairs
from diagnostics.processes import tell
from diagnostics.sequences import Example
from diagnostics.tokenized import end_ids
from diagnostics.vision.placeholders import FAMILIES
from trainers.models import longest, model_limit

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")  # columns of TRL's preference trainers, before they are cut
SUMS = ("ref_chosen_logps", "ref_rejected_logps")
TEXTS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "pair_id", "sample_id", "id")


@dataclass(frozen=True)
class PairSet:
    """pairs: what is measured. sums: by pair_id the log-probs that the trainer took of its reference beforehand, where
    it did. frame: the rows that were looked at, as in audit.parquet. said: where they come from. rows: of the
    trainer's data set, where that is known. given: whether they are not of that set.
    """

    pairs: list[Example] = field(default_factory=list)
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    said: str = ""
    rows: int | None = None
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    given: bool = False


def read_set(trainer: Any, given: Any, dataset: Any, tokenizer: Any, n: int, *, name: str = "") -> PairSet:
    """At most n pairs, drawn by the trainer's seed: of those given, else of its data set where that holds token ids,
    else none. given: a file or hub id, or rows. name: before the ids of pairs, where another set may have the same."""
    if given is not None:
        return _given(trainer, given, tokenizer, n, name)
    datasets = dict(dataset) if isinstance(dataset, Mapping) else {"": dataset}
    usable = [one for one in datasets.values() if n and holds_ids(one)]
    if not usable:
        return PairSet()
    found = _own(trainer, usable, tokenizer, n, name)
    left = [key for key, one in datasets.items() if not any(one is other for other in usable)]
    if not left:
        return found
    said = f" Left out, as they hold no pairs as token ids: {', '.join(map(str, left))}."
    tell(f"the trainer's sets {', '.join(map(str, datasets))}:{said}")
    return replace(found, said=found.said + said)


def holds_ids(dataset: Any) -> bool:
    """Whether the rows of a data set are pairs as token ids. One that can be read only once is left alone."""
    first = (
        next(iter(dataset), None) if hasattr(dataset, "__getitem__") or isinstance(dataset, IterableDataset) else None
    )
    return isinstance(first, Mapping) and all(column in first for column in IDS)


def _own(trainer: Any, datasets: Sequence[Any], tokenizer: Any, n: int, name: str) -> PairSet:
    """Pairs of the trainer's own data sets, as its collator cuts them."""
    ends, kept, skipped = end_ids(tokenizer), [], []
    for source_row, row in _drawn(datasets, trainer.args.seed):
        found = _sides(trainer.data_collator, row, ends)
        (skipped if isinstance(found, str) else kept).append((source_row, row, found))
        if len(kept) == n:
            break
    if not kept:
        why = f" (row {skipped[0][0]}: {skipped[0][2]})" if skipped else ""
        raise DataError(f"the trainer's data set holds no pair that can be measured{why}.")
    ids = _ids([row for _, row, _ in kept], tokenizer)
    pairs = [
        Example(name + pair_id, at, sides, _cuts(row, sides))
        for pair_id, (at, row, sides) in zip(ids, kept, strict=True)
    ]
    sums = {
        pair.pair_id: (float(row[SUMS[0]]), float(row[SUMS[1]]))
        for pair, (_, row, _) in zip(pairs, kept, strict=True)
        if all(column in row for column in SUMS)
    }
    rows = [_row(pair, tokenizer) for pair in pairs] + [_skipped(at, reason) for at, _, reason in skipped]
    counts = Counter(code for pair in pairs for code in pair.doubts) + Counter(why.split(":")[0] for *_, why in skipped)
    doubts = f" ({', '.join(f'{k} {code}' for code, k in counts.items())})" if counts else ""
    how = "drawn from" if _is_whole(datasets) else "that come first in"
    said = f"{len(pairs)} pairs {how} the trainer's own data set, token ids as its collator cuts them{doubts}."
    more = sum(any(_goes_on(side, ends) for side in pair.rows.values()) for pair in pairs)
    said += f" In {more} of them tokens follow the end of an answer, which the trainer counts, so they count." * bool(
        more
    )
    total = [len(one) if hasattr(one, "__len__") else None for one in datasets]
    return PairSet(pairs, frame_of(rows), said, None if None in total else sum(t for t in total if t), sums)


def _drawn(datasets: Sequence[Any], seed: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with their numbers in a random order; as they come where a data set is only streamed."""
    if not _is_whole(datasets):
        rows = (row for one in datasets for row in one)
        yield from enumerate(rows)
        return
    places = [(one, i) for one in datasets for i in range(len(one))]
    for number in random.Random(seed).sample(range(len(places)), len(places)):
        one, i = places[number]
        yield number, one[i]


def _is_whole(datasets: Sequence[Any]) -> bool:
    """Whether every row can be asked for: none of them is only streamed."""
    return all(hasattr(one, "__len__") and hasattr(one, "__getitem__") for one in datasets)


def _sides(collator: Any, row: Mapping[str, Any], ends: set[int]) -> dict[str, sequences.Sequence] | str:
    """Both sides as the trainer's batches hold them, or why the pair is skipped. A first token that the model is given
    nothing to predict from counts as prompt, as its log-prob is in no sum."""
    batch = collator([dict(row)])
    names = ("input_ids", "attention_mask", "completion_mask")
    if any(name not in batch for name in names) or len(batch["input_ids"]) != 2:
        raise UserError(
            f"the trainer's data collator ({type(collator).__name__}) gives no batch of chosen and rejected with "
            f"{', '.join(names)}. Give the pairs to measure with pairs=."
        )
    found = {}
    for side, ids, seen, mask in zip(("chosen", "rejected"), *(batch[name] for name in names), strict=True):
        real = seen.bool()
        tokens, counted = ids[real].tolist(), mask[real].tolist()
        first = max(1, counted.index(1)) if 1 in counted else len(counted)
        if not all(counted[first:]):
            raise UserError("the trainer's completion masks have gaps. Give the pairs to measure with pairs=.")
        if first == len(tokens):
            return f"zero_tokens: {side} has no token to predict"
        found[side] = sequences.Sequence(tokens[:first], tokens[first:], tokens[-1] in ends)
    if found["chosen"] == found["rejected"]:
        return f"identical_completions: {SKIPS['identical_completions']}"
    return found


def _cuts(row: Mapping[str, Any], sides: Mapping[str, sequences.Sequence]) -> tuple[str, ...]:
    """What the collator left out of a pair, as codes of the audit."""
    found = []
    for name, side in sides.items():
        if len(side) < len(row["prompt_ids"]) + len(row[f"{name}_ids"]):
            whole = list(side.prompt_ids) == list(row["prompt_ids"])
            found.append("completion_truncated" if whole else "prompt_truncated")
    found += ["eos_one_side"] if len({side.has_eos for side in sides.values()}) == 2 else []
    return tuple(dict.fromkeys(found))


def _goes_on(side: sequences.Sequence, ends: set[int]) -> bool:
    """Whether tokens follow the first end token of an answer."""
    return not ends.isdisjoint(side.completion_ids[:-1])


def _ids(rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[str]:
    """Ids of rows, as `chesboard flag` gives them where the texts still stand beside the token ids; else hashes of
    these."""
    texts = [{k: _without_end(row[k], tokenizer) for k in TEXTS if row.get(k) is not None} for row in rows]
    try:
        table = pairs_of("the trainer's data set", RawRows("hub", texts))
    except DataError:
        table = None
    known = {pair.source_row: pair.pair_id for pair in table.pairs} if table else {}
    found = [known.get(i) or _hash(row) for i, row in enumerate(rows)]
    times: Counter[str] = Counter()
    for i, pair_id in enumerate(found):
        times[pair_id] += 1
        found[i] = pair_id if times[pair_id] == 1 else f"{pair_id}-{times[pair_id]}"
    return found


def _without_end(value: Any, tokenizer: Any) -> Any:
    """The text without the EOS that TRL writes behind it."""
    return value.removesuffix(tokenizer.eos_token or "") if isinstance(value, str) else value


def _hash(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(repr([list(row[column]) for column in IDS]).encode()).hexdigest()[:16]


def _row(pair: Example, tokenizer: Any) -> dict[str, Any]:
    """A measured pair's row of audit.parquet; the texts are what its tokens say."""
    sides = (pair.chosen, pair.rejected)
    texts = [str(tokenizer.decode(list(ids))) for ids in (pair.prompt_ids, *(side.completion_ids for side in sides))]
    lengths = (len(pair.prompt_ids), *(len(side.completion_ids) for side in sides))
    return (
        {"pair_id": pair.pair_id, "source_row": pair.source_row, "status": "kept", "reason": ""}
        | {"doubts": "; ".join(pair.doubts), "chosen_has_eos": sides[0].has_eos, "rejected_has_eos": sides[1].has_eos}
        | dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
        | dict(zip(("prompt_length", "chosen_length", "rejected_length"), lengths, strict=True))
    )


def _skipped(source_row: int, reason: str) -> dict[str, Any]:
    blank = dict.fromkeys(("pair_id", "doubts", "prompt", "chosen", "rejected"), "")
    return blank | {"source_row": source_row, "status": "skipped", "reason": reason}


def _given(trainer: Any, given: Any, tokenizer: Any, n: int, name: str) -> PairSet:
    """Pairs as texts, read, tokenized and audited as all other commands do it."""
    table = table_of(given)
    check_media(trainer.model, table, tokenizer)
    most = longest(getattr(trainer.args, "max_length", None), model_limit(trainer.model))
    audit = audit_pairs(table, tokenizer, max_length=most, truncation="drop")
    kept = audit.require_kept()
    if unseen := audit.counts.get("media_unseen"):
        tell(f"{table.source}: {unseen} of {len(audit.frame)} rows are left out: {SKIPS['media_unseen']}.")
    drawn = random.Random(trainer.args.seed).sample(list(kept), min(n, len(kept)))
    pairs = [Example(name + p.pair_id, p.source_row, p.rows, p.doubts) for p in drawn]
    frame = audit.frame.assign(pair_id=[name + i if i else i for i in audit.frame["pair_id"]])
    return PairSet(pairs, frame, f"{table.source}: {' '.join(audit.said())}", given=True)


def table_of(given: Any) -> PairTable:
    """The pairs of a file, a hub id, a data set, a DataFrame or a list of rows, as all commands read them."""
    if isinstance(given, str | Path):
        return read_pairs(given)
    if isinstance(given, pd.DataFrame):
        rows = given.astype(object).where(given.notna(), None).to_dict("records")
        return pairs_of("pairs", RawRows("hub", rows))
    if isinstance(given, Mapping) and any(isinstance(one, Dataset | IterableDataset) for one in given.values()):
        raise UserError(
            f"the pairs are given as a {type(given).__name__} with the splits {', '.join(map(str, given))}. "
            f"Give one of them: pairs[{next(iter(given))!r}]."
        )
    rows = list(given) if isinstance(given, Iterable) and not isinstance(given, Mapping) else None
    if rows is None or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(
            f"the pairs to measure are given as {type(given).__name__}. Give a file, a hub id, a data set, a DataFrame "
            "or a list of rows with prompt, chosen and rejected."
        )
    return pairs_of("pairs", RawRows("hub" if isinstance(given, Dataset) else "json", [dict(row) for row in rows]))


def check_media(model: Any, table: Any, tokenizer: Any) -> None:
    """UserError where the pairs have images or clips, and the model is shown them in a way that is not known here."""
    config = getattr(unwrap(model), "config", None)
    unknown = getattr(config, "vision_config", None) is not None and getattr(tokenizer, "family", None) is None
    if unknown and any(pair.media for pair in table.pairs):
        raise UserError(
            f"{table.source}: some rows have images or clips, and how a model of type "
            f"{getattr(config, 'model_type', '')} is shown them is not known here. Leave these rows out, or choose a "
            f"model of type {', '.join(FAMILIES)}."
        )
