"""The run log: the contract between trainers, analysis and other people's tools. No torch.

    runs/<name>/config.json  manifest.json  audit.parquet  steps.jsonl  pairs/  mass/  tokens/  samples/  draws/

While a run lives, the tables (`pairs`, `mass` ...) grow as Arrow IPC streams (part-*.arrow, one record batch an
append, see streams), so that a crash loses nothing; `compact` turns each into part-*.parquet and lists all finished
files with their checksums in manifest.json (see listing). The reader takes both, and refuses what is damaged or lacks
rows (see complete).
Numbers are float64 and NaN where not measured, never 0. Rows are joined by pair_id, never by position.
"""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diagnostics import complete, listing
from diagnostics.errors import DataError
from diagnostics.files import disk_errors, read_json, read_text, replace_text, write_json
from diagnostics.streams import Stream, read_stream

__all__ = [
    "RunLog",
    "RunLogWriter",
    "compact",
    "drop_after",
    "list_table",
    "read_frame",
    "read_json",
    "read_run",
    "read_steps",
    "read_table",
    "write_frame",
    "write_json",
]

TABLES = ("pairs", "mass", "tokens", "samples", "draws")
LATER = ("samples", "draws")  # whose folder is made with the first row

_INTS = ("step", "rank", "token_id", "position", "source_row", "round", "sample", "seed", "tokens", "draw")
_STRINGS = ("split", "pair_id", "kind", "name", "token", "side", "prompt_id", "sampler", "text")
_BYTES = ("image",)
_TEXTS = ("alarm",)  # keys of steps.jsonl that hold words
_CONFIG_NUMBERS = ("seed", "learning_rate", "beta", "ablate_drop", "demo_seed", "demo_prompt")
_MANIFEST_OBJECTS = ("parity", "pairs", "hashes", "conventions")
_CONSTANTS = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}  # that other writers put into JSON
_SORT = {  # the columns by which a table's rows are known, and sorted
    "pairs": ["step", "split", "pair_id"],
    "mass": ["step", "split", "pair_id", "kind", "rank"],
    "tokens": ["step", "pair_id", "side", "position"],
    "samples": ["step", "round", "prompt_id", "sampler", "sample"],
    "draws": ["step", "split", "pair_id", "side", "draw"],
}


def column_type(name: str) -> pa.DataType:
    """Type of a table column by its name: a few ids are int64 or string, pictures bytes, every measure is float64."""
    if name in _BYTES:
        return pa.binary()
    return pa.int64() if name in _INTS else pa.string() if name in _STRINGS else pa.float64()


@dataclass(frozen=True, repr=False)
class RunLog:
    """One run read back. steps, pairs, mass, tokens, samples, audit: DataFrames, empty where the file is missing.

    samples: answers that a model gave: step, round, prompt_id, sampler (who, and how), sample (number among those of
    one prompt), seed, text, tokens (how many), score (a judge's, NaN without one). Of a denoiser: samples that it drew;
    text is what it was told, prompt_id a pair that is told the same, image a small PNG, empty where it is no picture.
    draws: of a denoiser: step, split, pair_id, side, draw (number), time, error (of the policy), ref_error, deviation
    (mean squared difference of the two outputs).
    """

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    steps: pd.DataFrame
    pairs: pd.DataFrame
    mass: pd.DataFrame
    tokens: pd.DataFrame
    audit: pd.DataFrame
    samples: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    draws: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    def __repr__(self) -> str:
        """One line, for notebooks: the folder, and how many rows each of its tables has."""
        tables = ((name, len(getattr(self, name))) for name in ("steps", *TABLES, "audit"))
        return f"RunLog({str(self.path)!r}: {', '.join(f'{n} {name}' for name, n in tables if n) or 'no rows'})"


class RunLogWriter:
    """Appends rows to a run folder; every append is on disk when the call returns.

    rank: number of this process; each process writes its own parts, and rank 0 alone writes steps.jsonl.
    """

    def __init__(self, path: str | Path, *, rank: int = 0) -> None:
        self.path = Path(path)
        self.rank = rank
        self._streams: dict[tuple[str, pa.Schema], Stream] = {}  # one part for each table and set of columns
        for table in TABLES:
            if table not in LATER:
                self._folder(table)

    def append_step(self, row: Mapping[str, Any]) -> None:
        """Add one line to steps.jsonl."""
        line = json.dumps({k: _jsonable(v) for k, v in row.items()}, allow_nan=False)
        with (
            disk_errors(self.path / "steps.jsonl"),
            open(self.path / "steps.jsonl", "a", encoding="utf-8") as f,
        ):
            f.write(line + "\n")

    def append(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to one of TABLES as one record batch. All rows of a call have the same columns."""
        if not rows:
            return
        schema = pa.schema([(name, column_type(name)) for name in rows[0]])
        if table in LATER:
            self._folder(table)
        with disk_errors(self.path / table):
            arrays = [pa.array([r[f.name] for r in rows], f.type, from_pandas=False) for f in schema]
            batch = pa.record_batch(arrays, schema=schema)
            stream = self._streams.pop((table, schema), None) or Stream(self._next_part(table), schema)
            stream.append(batch)
            self._streams[table, schema] = stream  # not where that failed: nothing may follow a batch that is cut

    def close(self) -> None:
        """End the streams; the rows stay readable whether or not this is reached."""
        while self._streams:
            (table, _), stream = self._streams.popitem()
            with disk_errors(self.path / table):
                stream.close()

    def _folder(self, table: str) -> None:
        with disk_errors(self.path / table):
            (self.path / table).mkdir(parents=True, exist_ok=True)

    def _next_part(self, table: str) -> Path:
        folder = self.path / table
        number = 1 + max((int(p.name.split("-")[1].split(".")[0]) for p in folder.glob("part-*")), default=-1)
        return folder / f"part-{number:05d}-r{self.rank}.arrow"


def compact(path: str | Path) -> None:
    """Turn every part-*.arrow of a run into part-*.parquet, and list the finished files in manifest.json.

    A stream is removed when all of it was read and its Parquet twin read back. Safe to interrupt: the reader prefers
    the twin. Raises DataError, and removes nothing, where a file is damaged.
    """
    _check_listed(Path(path))
    _finish(Path(path))


def _finish(path: Path) -> None:
    streams = sorted(part for table in TABLES for part in (path / table).glob("part-*.arrow"))
    for part in streams:
        done, (rows, _) = part.with_suffix(".parquet"), read_stream(part)
        if not done.exists():
            _write_parquet(rows, done)
        if _read_parquet(done).num_rows != rows.num_rows:
            raise DataError(f"{done}: has not the rows of {part.name}. Remove the one of the two that is damaged.")
    _list_files(path)
    for part in streams:
        with disk_errors(part):
            part.unlink()
            part.with_suffix(".sums").unlink(missing_ok=True)


def drop_after(path: str | Path, step: int) -> None:
    """Forget every logged row past `step` (a resumed run writes them again). Where a file is damaged, all stays.

    Lines of steps.jsonl past `step` may be lost, those up to it may not.
    """
    path, steps = Path(path), Path(path) / "steps.jsonl"
    lines = {at: json.dumps(row) + "\n" for at, row in read_steps(path).items() if at <= step}
    _check_listed(path, but="steps.jsonl")
    _finish(path)
    shorter = {}
    for part in sorted(part for table in TABLES for part in (path / table).glob("part-*.parquet")):
        rows = _read_parquet(part)
        kept = rows.filter(pc.field("step") <= step) if rows.num_rows else rows
        if lost := set(kept["step"].to_pylist() if lines and kept.num_rows else ()) - set(lines):
            raise DataError(f"{steps}: the line of step {min(lost)} is missing. Restore it from a copy, or run again.")
        if kept.num_rows < rows.num_rows:
            shorter[part] = kept
    text = "".join(lines.values())
    if not shorter and (not steps.exists() or read_text(steps) == text):
        return
    listing.clear(path)  # first: stopped in between, the log is still one that can be read
    for part, kept in shorter.items():
        _write_parquet(kept, part)
    if steps.exists():
        replace_text(steps, text)
    _list_files(path)


def read_run(path: str | Path) -> RunLog:
    """Read a run folder, finished, running or crashed. Raises DataError naming the file that cannot be read."""
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such run folder. Give the folder that `chesboard train` or `demo` wrote.")
    if not (path / "config.json").exists():
        raise DataError(f"{path}: not a run folder (no config.json in it).")
    config, manifest = _read_settings(path)
    if "model_type" in config:
        raise DataError(f"{path}: not a run folder (its config.json is a model's). Give the folder of a run.")
    _check_listed(path)
    steps = _steps_frame(path)  # before the tables: a running log writes a step after its rows
    logged = {table: _read_rows(path, table) for table in TABLES}
    tables = {table: rows for table, (rows, _) in logged.items()}
    complete.require(path, steps, tables, {table: cut for table, (_, cut) in logged.items()})
    tables = {table: _sorted(rows, table) for table, rows in tables.items()}
    return RunLog(path, config, manifest, steps, **tables, audit=read_frame(path / "audit.parquet"))


def read_steps(path: str | Path) -> dict[int, dict[str, Any]]:
    """The rows of steps.jsonl by their step; empty where it is missing.

    A step that stands there twice is one row, where its lines do not contradict each other. Raises DataError naming the
    line that is no row with a step.
    """
    path = Path(path) / "steps.jsonl"
    rows: dict[int, dict[str, Any]] = {}
    lines = (read_text(path) if path.exists() else "").split("\n")
    for number, line in enumerate(lines, 1):
        row = _step_row(path, number, line, last=number == len(lines))
        if row is None:
            continue
        before = rows.setdefault(row["step"], row)
        for key in _TEXTS:
            said = dict.fromkeys(r[key] for r in (before, row) if r.get(key))
            row |= {key: "; ".join(said)} if said else {}
            before |= {key: row[key]} if said else {}
        for key, value in row.items():
            if before.get(key) is not None and value is not None and before[key] != value:
                raise DataError(
                    f"{path}: line {number} gives step {row['step']} another {key} than a line before, as two writers "
                    "leave it. Remove one of the two lines."
                )
            before[key] = value if before.get(key) is None else before[key]
    return rows


def read_table(path: str | Path, table: str) -> pd.DataFrame:
    """All rows of one of TABLES, sorted; a row logged twice by two processes counts once.

    The parts of a scoring job (diagnostics.flag.parts) have no steps: their rows are known by pair_id alone.
    """
    _check_listed(Path(path), table)
    return _sorted(_read_rows(Path(path), table, stepless=True)[0], table)


def read_frame(path: str | Path) -> pd.DataFrame:
    """A Parquet file as a DataFrame; empty where the file is missing."""
    path = Path(path)
    listing.check(path.parent, path.name)
    return _frame(path, _read_parquet(path)) if path.exists() else pd.DataFrame()


def write_frame(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a DataFrame as Parquet in one move."""
    _write_parquet(pa.Table.from_pandas(frame, preserve_index=False), Path(path))


def list_table(path: str | Path, rows: int) -> None:
    """List a finished table in the manifest.json beside it, so that a reader sees damage."""
    listing.add(Path(path).parent, {Path(path).name: rows})


def _check_listed(path: Path, table: str = "", but: str = "") -> None:
    """Every file of the folder (or of one of its tables) that manifest.json lists is there and as it was."""
    for name in listing.listed(path):
        if name != but and (not table or name.startswith(f"{table}/")):
            listing.check(path, name)


def _list_files(path: Path) -> None:
    parts = [part for table in TABLES for part in (path / table).glob("part-*.parquet")]
    files = [*sorted(parts), *sorted(path.glob("audit*.parquet"))]
    rows = {str(file.relative_to(path)): _read_parquet(file).num_rows for file in files}
    if (path / "steps.jsonl").exists():
        rows["steps.jsonl"] = len(read_steps(path))
    listing.add(path, rows)


def _read_settings(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and manifest.json, what the analyses read of them checked for its kind."""
    config = read_json(path / "config.json")
    manifest = read_json(path / "manifest.json") if (path / "manifest.json").exists() else {}
    for key in _CONFIG_NUMBERS:
        _require_number(path / "config.json", key, config.get(key))
    for key in _MANIFEST_OBJECTS:
        if not isinstance(manifest.get(key) or {}, dict):
            raise DataError(f"{path / 'manifest.json'}: `{key}` is no JSON object. The file is damaged; run again.")
    for key in ("max_difference", "noise_floor"):
        _require_number(path / "manifest.json", f"parity/{key}", (manifest.get("parity") or {}).get(key))
    return config, manifest


def _require_number(path: Path, key: str, value: Any) -> None:
    try:
        float(0.0 if value is None else value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{path}: `{key}` is no number. The file is damaged; run again.") from None


def _read_rows(path: Path, table: str, *, stepless: bool = False) -> tuple[pd.DataFrame, bool]:
    """The rows of a table as they were logged, and whether the end of one of its streams was cut off."""
    folder = path / table
    parquet = sorted(folder.glob("part-*.parquet"))
    done = {p.stem for p in parquet}
    streams = {p: read_stream(p) for p in sorted(folder.glob("part-*.arrow")) if p.stem not in done}
    parts = {p: _read_parquet(p) for p in parquet} | {p: rows for p, (rows, _) in streams.items()}
    for part, rows in parts.items():
        _require_keys(part, rows, ["pair_id"] if stepless and "step" not in rows.schema.names else _SORT[table])
    found = [rows.replace_schema_metadata(None) for rows in parts.values() if rows.num_rows]
    cut = any(cut for _, cut in streams.values())
    if not found:
        return pd.DataFrame(), cut
    try:
        return _frame(folder, pa.concat_tables(found, promote_options="permissive")), cut
    except pa.ArrowException as error:
        raise DataError(f"{folder}: its parts do not fit together ({error}). One is damaged; run again.") from None


def _require_keys(part: Path, rows: pa.Table, keys: Sequence[str]) -> None:
    """A part has the columns by which its rows are known, once each, of their type and without a gap; and numbers."""
    for name in keys if rows.num_rows else ():
        kinds = (pa.types.is_integer,) if name in _INTS else (pa.types.is_string, pa.types.is_large_string)
        column = rows[name] if rows.schema.names.count(name) == 1 else None
        if column is None or column.null_count or not any(kind(column.type) for kind in kinds):
            said = "is missing" if column is None else "holds something else than it should"
            raise DataError(f"{part}: the column {name} {said}. The file is damaged, or no run log's; run again.")
    numbers = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    for field in rows.schema:
        if column_type(field.name) == pa.float64() and not any(kind(field.type) for kind in numbers):
            raise DataError(f"{part}: the column {field.name} holds no numbers. The file is damaged; run again.")


def _sorted(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    if frame.empty:
        return pd.DataFrame()
    keys = [key for key in _SORT[table] if key in frame]
    if table == "pairs":
        frame = frame.drop_duplicates(keys)
    return frame.sort_values(keys, kind="stable", ignore_index=True)


def _frame(path: Path, table: pa.Table) -> pd.DataFrame:
    """An Arrow table as a DataFrame, by its columns' types alone: what pandas wrote beside them may be damaged."""
    try:
        frame = table.replace_schema_metadata(None).to_pandas()
        unsure = [f.name for f in table.schema if pa.types.is_boolean(f.type) and table[f.name].null_count]
        return frame.astype(dict.fromkeys(unsure, "boolean"))
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not readable as a table ({error}). The file is damaged; run again.") from None


def _jsonable(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _steps_frame(path: Path) -> pd.DataFrame:
    """steps.jsonl as a table, one row a step."""
    rows = pd.DataFrame(list(read_steps(path).values()))
    return pd.DataFrame({k: rows[k] if k in _TEXTS else pd.to_numeric(rows[k], errors="coerce") for k in rows.columns})


def _step_row(path: Path, number: int, line: str, *, last: bool) -> dict[str, Any] | None:
    """One line's row; None for what follows the last newline, where that is nothing or was cut by a crash."""
    what = None
    try:
        row = json.loads(line, parse_constant=_CONSTANTS.get)
    except RecursionError:
        what = "is nested too deeply"
    except ValueError as error:
        if last and (not line or (line.startswith("{") and getattr(error, "msg", "") != "Extra data")):
            return None
        what = "is not JSON"
    else:
        what = _no_step(row)
    if what:
        raise DataError(f"{path}: line {number} {what}. Remove that line or run again.")
    return row | {"step": int(row["step"])}


def _no_step(row: Any) -> str:
    """Why a line is no row of a step; empty where it is one."""
    if not isinstance(row, dict) or "step" not in row:
        return "is no row with a step"
    step = row["step"]
    if type(step) not in (int, float) or step != step // 1 or not 0 <= step < 2**53:
        return "has a step that is no whole number from 0"
    for key, value in row.items():
        if key in _TEXTS and not isinstance(value, str | None):
            return f"has {key} that is no text"
        if key not in _TEXTS and not _is_number(value):
            return f"has {key} that is no number"
    return ""


def _is_number(value: Any) -> bool:
    """Whether a value of steps.jsonl is a number, null, or the word for one that JSON does not know."""
    if isinstance(value, str):
        return value in ("inf", "-inf", "nan")
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def _read_parquet(path: Path) -> pa.Table:
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise DataError(f"{path}: not readable as Parquet ({error}). The file is damaged; run again.") from None


def _write_parquet(table: pa.Table, path: Path) -> None:
    part = path.with_name(path.name + ".tmp")
    with disk_errors(path):
        try:
            with open(part, "wb") as file:
                pq.write_table(table, file, compression="zstd", write_page_checksum=True)
                file.flush()
                os.fsync(file.fileno())  # its stream is removed afterwards
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
