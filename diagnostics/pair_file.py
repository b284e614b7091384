"""Tokenized pairs in a file that all processes of a job map, so that the data is read and tokenized once."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from diagnostics import sequences
from diagnostics.errors import DataError
from diagnostics.frames import Frames, packed
from diagnostics.media import Media
from diagnostics.processes import agree, processes, share
from diagnostics.sequences import Example
from diagnostics.token_ids import TokenIds

T = TypeVar("T")

BATCH = 1024  # examples of one record batch
_IDS = ("prompt_ids", "completion_ids")
# where the frames are: in files by their paths, or in their content (see frames.Frames)
_MEDIUM = pa.struct(
    [
        *((name, pa.string()) for name in ("kind", "digest", "source")),
        *(("view", pa.list_(pa.string())), ("size", pa.list_(pa.int64())), ("taken", pa.list_(pa.int64()))),
        *(("paths", pa.list_(pa.string())), ("contents", pa.list_(pa.large_binary()))),
    ]
)
# one row a sequence; those of an example stand together, and a prompt or media that are the ones before are left empty
_SCHEMA = pa.schema(
    [
        *(("pair_id", pa.string()), ("source_row", pa.int64()), ("doubts", pa.list_(pa.string()))),
        *(("name", pa.string()), ("has_eos", pa.bool_()), ("media", pa.list_(_MEDIUM))),
        *((name, pa.large_list(pa.int32())) for name in _IDS),
    ]
)


def read_once(work: Callable[[], tuple[list[Example], T]], file: Path) -> tuple[list[Example], T]:
    """What work returns: pairs, and what else is to be known of them (little). Of several processes only the first
    does the work; the pairs go to the others through `file`, which is gone when this returns."""
    if processes().num_processes == 1:
        return work()

    def put() -> T:
        pairs, known = work()
        write_pairs(file, pairs)
        return known

    known = share(put)
    pairs = agree(lambda: read_pairs_file(file))
    share(file.unlink)
    return pairs, known


def write_pairs(path: Path, pairs: Sequence[Example]) -> None:
    """Write pairs as an Arrow file, in order."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for start in range(0, len(pairs), BATCH):
            writer.write_batch(_batch(pairs[start : start + BATCH]))


def read_pairs_file(path: Path) -> list[Example]:
    """The pairs of such a file; their ids stay in it, shared by all processes that map it."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read ({error}). Every process must see the same folder.") from None
    return [pair for i in range(reader.num_record_batches) for pair in _examples(reader.get_batch(i))]


def _batch(examples: Sequence[Example]) -> pa.RecordBatch:
    rows: list[tuple[Any, ...]] = []
    for example in examples:
        before, shown = None, None
        for name, row in example.rows.items():
            prompt = TokenIds(()) if row.prompt_ids == before else row.prompt_ids
            media = row.media if row.media is None else [] if row.media == shown else [_written(m) for m in row.media]
            before, shown = row.prompt_ids, row.media
            known = example.pair_id, example.source_row, example.doubts, name, row.has_eos, media
            rows.append((*known, prompt, row.completion_ids))
    columns = zip(zip(*rows, strict=True), _SCHEMA, strict=True)
    arrays = [_lists(v) if field.name in _IDS else pa.array(v, field.type) for v, field in columns]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _written(medium: Any) -> dict[str, Any]:
    """A medium for a file; of other kinds than images and clips there is no written form."""
    if not isinstance(medium, Media):
        raise DataError(
            f"{type(medium).__name__}: several processes share pairs with images and clips only. Start one process."
        )
    frames = packed(medium)
    return {
        **{name: getattr(medium, name) for name in ("kind", "digest", "source", "view")},
        "size": medium.shape(),
        "taken": frames.taken,
        "paths": [item if isinstance(item, str) else None for item in frames.items],
        "contents": [item if isinstance(item, bytes) else None for item in frames.items],
    }


def _read(row: dict[str, Any]) -> Media:
    items = tuple(path if path is not None else content for path, content in zip(row["paths"], row["contents"]))
    load, view = Frames(items, tuple(row["taken"])), tuple(row["view"])
    return Media(row["kind"], row["digest"], view, row["source"], load, tuple(row["size"]))


def _lists(values: Sequence[TokenIds]) -> pa.LargeListArray:
    ends = np.cumsum([0, *map(len, values)])
    ids = np.concatenate([np.asarray(v) for v in values])
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(ids, pa.int32()))


def _examples(batch: pa.RecordBatch) -> list[Example]:
    found: list[Example] = []
    rows: dict[str, sequences.Sequence] = {}
    for row, prompt, completion in zip(
        batch.drop_columns(list(_IDS)).to_pylist(), *(_views(batch.column(name)) for name in _IDS), strict=True
    ):
        if not found or found[-1].pair_id != row["pair_id"] or row["name"] in rows:
            rows, asked, shown = {}, prompt, None
            found.append(Example(row["pair_id"], row["source_row"], rows, tuple(row["doubts"])))
        asked = prompt if len(prompt) else asked
        media = row["media"] and tuple(map(_read, row["media"]))
        shown = shown if media == [] else media
        rows[row["name"]] = sequences.Sequence(asked, completion, row["has_eos"], shown)
    return found


def _views(column: Any) -> list[TokenIds]:
    ends, ids = column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=True)
    return [TokenIds(ids[a:b]) for a, b in pairwise(ends)]
