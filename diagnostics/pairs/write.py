"""Rows of a data set back into a file, in the data's own format. No torch."""

import csv
import gzip
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diagnostics.errors import DataError, UserError
from diagnostics.pairs.pair import PairTable
from diagnostics.pairs.rows import RawRows, kind_of


def write_rows(table: PairTable, source_rows: Sequence[int], dest: str | Path) -> None:
    """Write the given rows (0-based, in this order) in the data set's own format: JSONL lines byte for byte, CSV,
    JSON and Parquet with the same columns; compressed where dest ends in .gz. Hub data becomes JSONL or Parquet."""
    dest = Path(dest)
    if dest.exists() and Path(table.source).exists() and dest.samefile(table.source):
        raise UserError(f"{dest}: is the data set itself. Give another file name, so that nothing is lost.")
    content = _encode(table.raw, source_rows, _target_kind(table.raw, dest))
    if dest.suffix.lower() == ".gz":
        content = gzip.compress(content, mtime=0)
    part = dest.with_name(dest.name + ".tmp")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, dest)
    except OSError as error:
        raise DataError(f"{dest}: cannot write ({error.strerror}). Free some space or choose another place.") from None


def _target_kind(raw: RawRows, dest: Path) -> str:
    kind = kind_of(dest)
    allowed = {"hub": ("jsonl", "parquet"), "jsonl": ("jsonl", "json")}.get(raw.kind, (raw.kind,))
    if kind is None or kind not in allowed:
        names = " or ".join("." + k for k in allowed)
        raise UserError(f"{dest}: the data set is written back in its own format. Give a name ending in {names}.")
    return kind if raw.kind == "hub" else raw.kind


def _encode(raw: RawRows, source_rows: Sequence[int], kind: str) -> bytes:
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(raw.original.take(pa.array(source_rows, pa.int64())), sink)
        return sink.getvalue()
    if kind == "csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([raw.original[0], *(raw.original[i + 1] for i in source_rows)])
        return text.getvalue().encode()
    rows = [raw.rows[i] for i in source_rows]
    if kind == "json":
        return (json.dumps(rows, ensure_ascii=False, indent=2) + "\n").encode(errors="surrogatepass")
    lines = [raw.original[i] for i in source_rows] if raw.kind == "jsonl" else [_json_line(r) for r in rows]
    return b"".join(line + b"\n" for line in lines)


def _json_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode()
