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
from diagnostics.media import Media
from diagnostics.pairs.pair import PairTable
from diagnostics.pairs.rows import RawRows, folder_of, kind_of


def write_rows(table: PairTable, source_rows: Sequence[int], dest: str | Path) -> None:
    """Write the given rows (0-based, in this order) in the data set's own format: JSONL lines byte for byte, CSV,
    JSON and Parquet with the same columns; compressed where dest ends in .gz. Hub data becomes JSONL or Parquet."""
    dest = Path(dest)
    if dest.exists() and Path(table.source).exists() and dest.samefile(table.source):
        raise UserError(f"{dest}: is the data set itself. Give another file name, so that nothing is lost.")
    kind, part = _target_kind(table.raw, dest), dest.with_name(dest.name + ".tmp")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as plain:
            if dest.suffix.lower() == ".gz":
                with gzip.GzipFile("", "wb", fileobj=plain, mtime=0) as packed:
                    _write(table.raw, source_rows, kind, packed)
            else:
                _write(table.raw, source_rows, kind, plain)
        os.replace(part, dest)
    except UnicodeEncodeError:
        part.unlink(missing_ok=True)
        raise
    except OSError as error:
        raise DataError(f"{dest}: cannot write ({error.strerror}). Free some space or choose another place.") from None


def media_left_behind(table: PairTable, dest: str | Path) -> str:
    """A sentence where rows written to dest, as they stood, name media by paths relative to another folder, else ""."""
    folder = folder_of(table.source)
    media = [m for pair in table.pairs for m in pair.media if isinstance(m, Media)]  # not samples of a denoiser
    sources = {m.source for m in media if not Path(m.source).is_absolute()}
    if Path(dest).parent.resolve() == folder.resolve() or not any((folder / source).exists() for source in sources):
        return ""
    return f"{dest}: its rows name images and clips by paths relative to {folder}; read it with that as media_folder."


def _target_kind(raw: RawRows, dest: Path) -> str:
    kind = kind_of(dest)
    allowed = {"hub": ("jsonl", "parquet"), "jsonl": ("jsonl", "json")}.get(raw.kind, (raw.kind,))
    if kind is None or kind not in allowed:
        names = " or ".join("." + k for k in allowed)
        raise UserError(f"{dest}: the data set is written back in its own format. Give a name ending in {names}.")
    return kind if raw.kind == "hub" else raw.kind


def _write(raw: RawRows, source_rows: Sequence[int], kind: str, file: Any) -> None:
    """Row by row where the format has rows: the data are not held a second time."""
    if kind == "parquet":
        pq.write_table(raw.original.take(pa.array(source_rows, pa.int64())), file)
    elif kind == "csv":
        text = io.TextIOWrapper(file, "utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(raw.original[0])
        writer.writerows(raw.original[i + 1] for i in source_rows)
        text.detach()
    elif kind == "json":
        rows = [raw.rows[i] for i in source_rows]
        file.write((json.dumps(rows, ensure_ascii=False, indent=2) + "\n").encode(errors="surrogatepass"))
    else:
        for i in source_rows:
            file.write((raw.original[i] if raw.kind == "jsonl" else _json_line(raw.rows[i])) + b"\n")


def _json_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode()
