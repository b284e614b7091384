"""Tokenized pairs in a file that all processes of a job map, so that the data is read and tokenized once."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from diagnostics.errors import DataError
from diagnostics.processes import agree, processes, share
from diagnostics.token_ids import TokenIds
from diagnostics.tokenized import TokenizedPair

T = TypeVar("T")

BATCH = 1024  # pairs of one record batch
SIDES = ("prompt_ids", "chosen_ids", "rejected_ids")
_IDS = tuple((name, pa.large_list(pa.int32())) for name in SIDES)
_ENDS = (("chosen_has_eos", pa.bool_()), ("rejected_has_eos", pa.bool_()))
_SCHEMA = pa.schema(
    [("pair_id", pa.string()), ("source_row", pa.int64()), *_IDS, *_ENDS, ("doubts", pa.list_(pa.string()))]
)


def read_once(work: Callable[[], tuple[list[TokenizedPair], T]], file: Path) -> tuple[list[TokenizedPair], T]:
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


def write_pairs(path: Path, pairs: Sequence[TokenizedPair]) -> None:
    """Write pairs as an Arrow file, in order."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for start in range(0, len(pairs), BATCH):
            writer.write_batch(_batch(pairs[start : start + BATCH]))


def read_pairs_file(path: Path) -> list[TokenizedPair]:
    """The pairs of such a file; their ids stay in it, shared by all processes that map it."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read ({error}). Every process must see the same folder.") from None
    return [pair for i in range(reader.num_record_batches) for pair in _pairs(reader.get_batch(i))]


def _batch(pairs: Sequence[TokenizedPair]) -> pa.RecordBatch:
    columns: list[Any] = []
    for field in _SCHEMA:
        values = [getattr(pair, field.name) for pair in pairs]
        columns.append(_lists(values) if field.name in SIDES else pa.array(values, field.type))
    return pa.record_batch(columns, schema=_SCHEMA)


def _lists(values: Sequence[TokenIds]) -> pa.LargeListArray:
    ends = np.cumsum([0, *map(len, values)])
    ids = np.concatenate([np.asarray(v) for v in values])
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(ids, pa.int32()))


def _pairs(batch: pa.RecordBatch) -> list[TokenizedPair]:
    plain = batch.drop_columns(list(SIDES)).to_pylist()
    sides = {name: _views(batch.column(name)) for name in SIDES}
    return [
        TokenizedPair(**row | {"doubts": tuple(row["doubts"])}, **{name: sides[name][i] for name in SIDES})
        for i, row in enumerate(plain)
    ]


def _views(column: Any) -> list[TokenIds]:
    ends, ids = column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=True)
    return [TokenIds(ids[a:b]) for a, b in pairwise(ends)]
