"""Tokenized pairs in a file that all processes of a job map, so that the data is read and tokenized once."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from diagnostics.errors import DataError
from diagnostics.processes import agree, processes, share
from diagnostics.sequences import Example, pair_of
from diagnostics.token_ids import TokenIds

T = TypeVar("T")

BATCH = 1024  # pairs of one record batch
SIDES = ("prompt_ids", "chosen_ids", "rejected_ids")  # of pairs alone, whose sides share a prompt
_IDS = tuple((name, pa.large_list(pa.int32())) for name in SIDES)
_ENDS = (("chosen_has_eos", pa.bool_()), ("rejected_has_eos", pa.bool_()))
_SCHEMA = pa.schema(
    [("pair_id", pa.string()), ("source_row", pa.int64()), *_IDS, *_ENDS, ("doubts", pa.list_(pa.string()))]
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
    return [pair for i in range(reader.num_record_batches) for pair in _pairs(reader.get_batch(i))]


def _batch(pairs: Sequence[Example]) -> pa.RecordBatch:
    ids = zip(*((p.prompt_ids, p.chosen.completion_ids, p.rejected.completion_ids) for p in pairs), strict=True)
    ends = [[row.has_eos for row in side] for side in zip(*((p.chosen, p.rejected) for p in pairs), strict=True)]
    plain = [p.pair_id for p in pairs], [p.source_row for p in pairs]
    columns: list[Any] = [*plain, *map(_lists, ids), *ends, [p.doubts for p in pairs]]
    fields = zip(columns, _SCHEMA, strict=True)
    arrays = [values if isinstance(values, pa.Array) else pa.array(values, field.type) for values, field in fields]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _lists(values: Sequence[TokenIds]) -> pa.LargeListArray:
    ends = np.cumsum([0, *map(len, values)])
    ids = np.concatenate([np.asarray(v) for v in values])
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(ids, pa.int32()))


def _pairs(batch: pa.RecordBatch) -> list[Example]:
    plain = batch.drop_columns(list(SIDES)).to_pylist()
    ids = zip(*(_views(batch.column(name)) for name in SIDES), strict=True)
    return [
        pair_of(
            row["pair_id"],
            row["source_row"],
            *sides,
            (row["chosen_has_eos"], row["rejected_has_eos"]),
            tuple(row["doubts"]),
        )
        for row, sides in zip(plain, ids, strict=True)
    ]


def _views(column: Any) -> list[TokenIds]:
    ends, ids = column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=True)
    return [TokenIds(ids[a:b]) for a, b in pairwise(ends)]
