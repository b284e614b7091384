"""Rows from files, folders and the hub, as they stand there. No torch."""

import csv
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diagnostics.errors import DataError, UserError, printable

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_CHUNK = 2**20
GZ_RATIO, GZ_LEAST = 100, 16 * 2**20  # text packs to a tenth or so; a file that unpacks to more than this is a trap


@dataclass(frozen=True)
class RawRows:
    """Rows as read, and what it takes to write them back.

    kind: jsonl, json, csv, parquet or hub. lines: 1-based line where each row starts (text files only).
    original: the lines' bytes (jsonl), header and records (csv), or the Arrow table (parquet, hub).
    """

    kind: str
    rows: list[Any]
    lines: list[int] | None = None
    original: Any = None

    @property
    def padded(self) -> bool:
        """Whether the format gives all structs of a column one set of keys, and null where a row has none."""
        return self.kind in ("parquet", "hub")

    def place(self, source_row: int) -> str:
        """Where a person finds a row: "line 3" in text files, else "row 2" (0-based)."""
        return f"row {source_row}" if self.lines is None else f"line {self.lines[source_row]}"


def read_rows(source: str | Path, split: str | None = None) -> RawRows:
    """The rows of a file, a folder or a hub id. Raises DataError where they cannot be read."""
    path, kind = Path(source), kind_of(source)
    if path.is_dir() or (kind is None and not path.exists() and not _looks_local(source)):
        return _read_dataset(source, split)
    if not path.exists():
        raise DataError(f"{source}: no such file. Check the path, or give a hub id such as owner/name.")
    if kind is None:
        known = ", ".join(_SUFFIXES)
        raise DataError(f"{source}: unknown kind of file. Give one of {known} (each also with .gz).")
    if split is not None:
        raise UserError(f"{source}: a single file has no split {split!r}. Leave the split out.")
    data = _read_bytes(path)
    if not data.strip():
        raise DataError(f"{source}: the file is empty. Give a data set with at least one preference pair.")
    return _READERS[kind](str(source), data)


def folder_of(source: str | Path) -> Path:
    """Where the data stand; for a hub id, where we are."""
    path = Path(source)
    return path if path.is_dir() else path.parent if path.exists() else Path()


def kind_of(path: str | Path) -> str | None:
    """jsonl, json, csv or parquet by the file's name, with or without .gz; else None."""
    name = str(path).lower().removesuffix(".gz")
    return _SUFFIXES.get(Path(name).suffix)


def _looks_local(source: str | Path) -> bool:
    """A path rather than a hub id: hub ids are `name` or `owner/name`."""
    name = str(source)
    return isinstance(source, Path) or name.startswith((".", "~", os.sep)) or name.count("/") > 1


def _read_bytes(path: Path) -> bytes:
    try:
        return _unpacked(path) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}). The file is damaged or not what its name says.") from None


def _unpacked(path: Path) -> bytes:
    """The content of a .gz file, in chunks, up to GZ_RATIO times its size (16 MiB are always allowed)."""
    most, data = max(GZ_LEAST, GZ_RATIO * path.stat().st_size), bytearray()
    with gzip.open(path) as packed:
        while chunk := packed.read(_CHUNK):
            data += chunk
            if len(data) > most:
                raise DataError(
                    f"{path}: unpacks to more than {most // 2**20} MiB, over {GZ_RATIO} times its size, as no text "
                    "does. If you trust it, unpack it with gunzip and give the unpacked file."
                )
    return bytes(data)


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{name}: line {line} is not UTF-8 text. Save the file as UTF-8.") from None


def _read_jsonl(name: str, data: bytes) -> RawRows:
    rows, lines, original = [], [], []
    _decode(name, data)
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line, object_pairs_hook=_object))
        except _Twice as twice:
            raise DataError(f"{name}: line {number} has {twice} twice. Give each field its own name.") from None
        except (ValueError, RecursionError):
            raise DataError(f"{name}: line {number} is not JSON. Correct or remove that line.") from None
        lines.append(number)
        original.append(line)
    return RawRows("jsonl", rows, lines, original)


class _Twice(Exception):
    """An object holds a name twice, which JSON's reader would drop."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(printable(repr(next(name for name in names if names.count(name) > 1))))
    return found


def _read_json(name: str, data: bytes) -> RawRows:
    """A JSON list of rows; files named .json that hold one object a line are read as JSONL."""
    try:
        rows = json.loads(_decode(name, data), object_pairs_hook=_object)
    except _Twice as twice:
        raise DataError(f"{name}: a row has {twice} twice. Give each field its own name.") from None
    except RecursionError:
        raise DataError(f"{name}: nested too deeply to be read. Give a list of rows.") from None
    except ValueError as error:
        if data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            return _read_jsonl(name, data)
        line = getattr(error, "lineno", 1)
        raise DataError(f"{name}: line {line} is not JSON. Correct the file there.") from None
    if not isinstance(rows, list):
        raise DataError(f"{name}: holds one JSON value, not rows. Give a list of objects, or one object a line.")
    return RawRows("json", rows)


def _read_csv(name: str, data: bytes) -> RawRows:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 131072 characters is short of long dialogues
    reader = csv.reader(io.StringIO(_decode(name, data), newline=""), strict=True)
    records, lines, start = [], [], 1
    try:
        for record in reader:
            if record:
                records.append(record)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}: line {start} is not CSV ({error}). Correct the quotes there.") from None
    if not records:
        raise DataError(f"{name}: the file is empty. Give a header line and one row a pair.")
    header = records[0]
    twice = [c for i, c in enumerate(header) if c in header[:i]]
    if twice:
        raise DataError(f"{name}: line 1 names the column {twice[0]!r} twice. Give each column its own name.")
    rows = [dict(zip(header, r)) if len(r) == len(header) else r for r in records[1:]]
    return RawRows("csv", rows, lines[1:], records)


def _read_parquet(name: str, data: bytes) -> RawRows:
    try:
        table = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()
        table.validate(full=True)  # a flipped bit may leave offsets that point outside
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: not readable as Parquet ({why}). The file is damaged; fetch it again.") from None
    return RawRows("parquet", rows, None, table)


_READERS: dict[str, Callable[[str, bytes], RawRows]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
}


def _read_dataset(source: str | Path, split: str | None) -> RawRows:
    """A folder or hub id through the datasets library, without any remote code."""
    import datasets

    saved = any((Path(source) / f).exists() for f in ("dataset_info.json", "dataset_dict.json"))
    try:
        found: Any = datasets.load_from_disk(str(source)) if saved else datasets.load_dataset(str(source))
    except Exception as error:  # the library raises many kinds; each means the same to the user
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"{source}: cannot be loaded as a folder or hub data set ({lines[0]}). Check the name and the connection."
        ) from None
    if isinstance(found, dict):
        found = found[_choose_split(source, list(found), split)]
    table = pa.table(found.with_format("arrow")[:])
    return RawRows("hub", table.to_pylist(), None, table)


def _choose_split(source: str | Path, names: list[str], split: str | None) -> str:
    usual = [n for n in ("train", "train_prefs") if n in names] or names
    if split is None and (len(names) == 1 or usual is not names):
        return usual[0]
    if split is None or split not in names:
        asked = f"no split {split!r}" if split else "several splits"
        raise DataError(f"{source}: {asked}. Choose one of {', '.join(names)}.")
    return split
