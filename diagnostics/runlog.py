"""The run log: the contract between trainers, analysis and other people's tools. No torch.

    runs/<name>/config.json  manifest.json  audit.parquet  steps.jsonl  pairs/  mass/  tokens/

While a run lives, `pairs`, `mass` and `tokens` grow as Arrow IPC streams (part-*.arrow, one record batch an
append), so that a crash loses nothing; `compact` turns each into part-*.parquet. The reader takes both.
Numbers are float64 and NaN where not measured, never 0. Rows are joined by pair_id, never by position.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diagnostics.errors import DataError

TABLES = ("pairs", "mass", "tokens")

_INTS = ("step", "rank", "token_id", "position", "source_row")
_STRINGS = ("split", "pair_id", "kind", "name", "token", "side")
_TEXTS = ("alarm",)  # keys of steps.jsonl that hold words
_SORT = {
    "pairs": ["step", "split", "pair_id"],
    "mass": ["step", "split", "pair_id", "kind", "rank"],
    "tokens": ["step", "pair_id", "side", "position"],
}


def column_type(name: str) -> pa.DataType:
    """Type of a table column by its name: a few ids are int64 or string, every measure is float64."""
    return pa.int64() if name in _INTS else pa.string() if name in _STRINGS else pa.float64()


@dataclass(frozen=True)
class RunLog:
    """One run read back. steps, pairs, mass, tokens, audit: DataFrames, empty where the file is missing."""

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    steps: pd.DataFrame
    pairs: pd.DataFrame
    mass: pd.DataFrame
    tokens: pd.DataFrame
    audit: pd.DataFrame

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


class RunLogWriter:
    """Appends rows to a run folder; every append is on disk when the call returns.

    rank: number of this process; each process writes its own parts, and rank 0 alone writes steps.jsonl.
    """

    def __init__(self, path: str | Path, *, rank: int = 0) -> None:
        self.path = Path(path)
        self.rank = rank
        self._streams: dict[str, tuple[pa.Schema, Any, Any]] = {}
        for table in TABLES:
            (self.path / table).mkdir(parents=True, exist_ok=True)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write config.json or manifest.json in one move."""
        write_json(self.path / name, content)

    def append_step(self, row: Mapping[str, Any]) -> None:
        """Add one line to steps.jsonl."""
        line = json.dumps({k: _jsonable(v) for k, v in row.items()}, allow_nan=False)
        with (
            _disk_errors(self.path / "steps.jsonl"),
            open(self.path / "steps.jsonl", "a", encoding="utf-8") as f,
        ):
            f.write(line + "\n")

    def append(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to pairs, mass or tokens as one record batch. All rows of a call have the same columns."""
        if not rows:
            return
        schema = pa.schema([(name, column_type(name)) for name in rows[0]])
        arrays = [pa.array([r[f.name] for r in rows], f.type, from_pandas=False) for f in schema]
        file, writer = self._stream(table, schema)
        with _disk_errors(self.path / table):
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            file.flush()

    def close(self) -> None:
        """End the streams; the rows stay readable whether or not this is reached."""
        for _, file, writer in self._streams.values():
            with _disk_errors(self.path):
                writer.close()
                file.close()
        self._streams.clear()

    def _stream(self, table: str, schema: pa.Schema) -> tuple[Any, Any]:
        if table in self._streams:
            known, file, writer = self._streams[table]
            if known == schema:
                return file, writer
            writer.close()
            file.close()
        folder = self.path / table
        number = 1 + max((int(p.name.split("-")[1].split(".")[0]) for p in folder.glob("part-*")), default=-1)
        with _disk_errors(folder):
            file = open(folder / f"part-{number:05d}-r{self.rank}.arrow", "wb")
            writer = pa.ipc.new_stream(file, schema)
        self._streams[table] = (schema, file, writer)
        return file, writer


def compact(path: str | Path) -> None:
    """Turn every part-*.arrow of a run into part-*.parquet. Safe to interrupt: the reader prefers the Parquet twin."""
    for table in TABLES:
        for part in sorted((Path(path) / table).glob("part-*.arrow")):
            done = part.with_suffix(".parquet")
            if not done.exists():
                _write_parquet(_read_stream(part), done)
            part.unlink()


def drop_after(path: str | Path, step: int) -> None:
    """Forget every logged row past `step` (a resumed run writes them again)."""
    path = Path(path)
    compact(path)
    for table in TABLES:
        for part in (path / table).glob("part-*.parquet"):
            kept = _read_parquet(part)
            _write_parquet(kept.filter(pc.field("step") <= step), part)
    steps = path / "steps.jsonl"
    if steps.exists():
        lines = [json.dumps(row) for row in _read_jsonl(steps) if row["step"] <= step]
        _replace(steps, "".join(line + "\n" for line in lines))


def read_run(path: str | Path) -> RunLog:
    """Read a run folder, finished, running or crashed. Raises DataError naming the file that cannot be read."""
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such run folder. Give the folder that `chesboard train` or `demo` wrote.")
    if not (path / "config.json").exists():
        raise DataError(f"{path}: not a run folder (no config.json in it).")
    return RunLog(
        path=path,
        config=read_json(path / "config.json"),
        manifest=read_json(path / "manifest.json") if (path / "manifest.json").exists() else {},
        steps=_steps_frame(path / "steps.jsonl"),
        pairs=read_table(path, "pairs"),
        mass=read_table(path, "mass"),
        tokens=read_table(path, "tokens"),
        audit=read_frame(path / "audit.parquet"),
    )


def read_table(path: str | Path, table: str) -> pd.DataFrame:
    """All rows of pairs, mass or tokens, sorted; a row logged twice by two processes counts once."""
    folder = Path(path) / table
    parquet = sorted(folder.glob("part-*.parquet"))
    done = {p.stem for p in parquet}
    streams = [p for p in sorted(folder.glob("part-*.arrow")) if p.stem not in done]
    tables = [_read_parquet(p) for p in parquet] + [_read_stream(p) for p in streams]
    tables = [t for t in tables if t.num_rows]
    if not tables:
        return pd.DataFrame()
    frame = pa.concat_tables(tables, promote_options="default").to_pandas()
    keys = [k for k in _SORT[table] if k in frame]
    if table == "pairs":
        frame = frame.drop_duplicates(keys)
    return frame.sort_values(keys, kind="stable", ignore_index=True)


def read_frame(path: str | Path) -> pd.DataFrame:
    """A Parquet file as a DataFrame; empty where the file is missing."""
    return _read_parquet(Path(path)).to_pandas() if Path(path).exists() else pd.DataFrame()


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object, or DataError naming the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}). The file is damaged; run again.") from None


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object in one move, so that no half file is ever seen."""
    _replace(Path(path), json.dumps(content, indent=2, default=str) + "\n")


def write_frame(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a DataFrame as Parquet in one move."""
    _write_parquet(pa.Table.from_pandas(frame, preserve_index=False), Path(path))


class _disk_errors:
    """Turns an operating system error while writing into one sentence; what was written before stays."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise DataError(
                f"{self.path}: cannot write ({reason}). Rows logged before this are kept; free some space "
                "or choose another folder, then resume."
            ) from None


def _jsonable(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _steps_frame(path: Path) -> pd.DataFrame:
    frame = pd.DataFrame(_read_jsonl(path) if path.exists() else [])
    return pd.DataFrame(
        {k: frame[k] if k in _TEXTS else pd.to_numeric(frame[k], errors="coerce") for k in frame.columns}
    )


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1], 1):  # a last line without its newline was cut by a crash
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise DataError(f"{path}: line {number} is not JSON. Remove that line or run again.") from None
    return rows


def _read_stream(path: Path) -> pa.Table:
    """Every whole record batch of a stream; a batch cut by a crash is left out."""
    batches: list[pa.RecordBatch] = []
    schema = pa.schema([])
    try:
        reader = pa.ipc.open_stream(pa.memory_map(str(path)))
        schema = reader.schema
        batches.extend(_whole_batches(reader))
    except (pa.ArrowInvalid, OSError):
        pass  # an empty or cut header: nothing was logged in this part yet
    return pa.Table.from_batches(batches, schema=schema)


def _whole_batches(reader: Any) -> Any:
    while True:
        try:
            yield reader.read_next_batch()
        except (StopIteration, pa.ArrowInvalid, OSError):
            return


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet ({error}). The file is damaged; run again.") from None


def _write_parquet(table: pa.Table, path: Path) -> None:
    part = path.with_name(path.name + ".tmp")
    with _disk_errors(path):
        pq.write_table(table, part, compression="zstd")
        os.replace(part, path)


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".tmp")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
