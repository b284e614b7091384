"""Preference pairs from files and hubs: one reader, recognising the usual shapes by their fields. No torch.

Shapes (the file's shape is the one most of its rows have):
    prompt           TRL explicit prompt: prompt, chosen, rejected, all text.
    implicit-prompt  chosen and rejected text with a shared start, which becomes the prompt.
    conversational   chosen and rejected are lists of chat messages, with `prompt` or with shared leading messages.
    ultrafeedback    as conversational, with a `prompt` text that repeats the user turn and is not used.
    hh-rlhf          transcripts "\\n\\nHuman: ...\\n\\nAssistant: ...", split after the last "\\n\\nAssistant:".
    alpacafarm       instruction, input, output_1, output_2, preference (1 or 2: which output is chosen).
    persona          question, answer_matching_behavior (chosen), answer_not_matching_behavior (rejected).
"""

import csv
import gzip
import hashlib
import io
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diagnostics.errors import DataError, UserError

Message = dict[str, Any]
Text = str | list[Message]

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_ID_FIELDS = ("pair_id", "sample_id", "id")
_PERSONA = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
_ALPACA = ("instruction", "output_1", "output_2", "preference")
_MARKER = "\n\nAssistant:"


@dataclass(frozen=True)
class PreferencePair:
    """One pair. prompt, chosen, rejected: text, or lists of chat messages ({"role", "content"}) for chat data.

    pair_id: the row's own id, else 16 hex digits of a hash of the content. source_row: 0-based row of the source.
    columns: the row's other fields, as read. tools, template_kwargs: what the chat template is given besides the messages.
    """

    pair_id: str
    source_row: int
    prompt: Text
    chosen: Text
    rejected: Text
    columns: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RowProblem:
    """A row that gives no pair: a short code, the field at fault, and the reason in words."""

    source_row: int
    code: str
    field: str
    reason: str


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


@dataclass(frozen=True)
class PairTable:
    """A data set as pairs, and the rows that gave none. Every source row is in exactly one of the two."""

    source: str
    shape: str
    pairs: list[PreferencePair]
    problems: list[RowProblem]
    raw: RawRows

    def where(self, source_row: int) -> str:
        """File and place of a row as a person finds it: "pairs.jsonl: line 3", or "... row 2" (0-based)."""
        return f"{self.source}: {_place(self.raw, source_row)}"


class SkipRow(Exception):
    """Raised inside the room when one row cannot be used; never reaches the user."""

    def __init__(self, code: str, reason: str, field: str = "") -> None:
        super().__init__(reason)
        self.code, self.reason, self.field = code, reason, field


def read_pairs(source: str | Path, *, split: str | None = None) -> PairTable:
    """Read preference pairs from a .jsonl, .json, .csv or .parquet file (also .gz), a folder, or a hub id.

    A row that cannot be used becomes a problem with its reason. Raises DataError where the source as a whole cannot
    be used: missing, empty, damaged, of no known shape, or without one usable row.
    """
    name, raw = str(source), _read_raw(source, split)
    if not raw.rows:
        raise DataError(f"{name}: holds no rows. Give a data set with at least one preference pair.")
    shape = _file_shape(name, raw)
    pairs, problems = _parse_rows(raw.rows, shape)
    table = PairTable(name, shape, pairs, problems, raw)
    if not pairs:
        first = problems[0]
        raise DataError(
            f"{table.where(first.source_row)}: {first.reason}. None of the {len(raw.rows)} rows gives a pair "
            "(this is the first of them); correct the data."
        )
    return table


def write_rows(table: PairTable, source_rows: Sequence[int], dest: str | Path) -> None:
    """Write the given rows (0-based, in this order) in the data set's own format: JSONL lines byte for byte, CSV,
    JSON and Parquet with the same columns; compressed where dest ends in .gz. Hub data becomes JSONL or Parquet."""
    dest, raw = Path(dest), table.raw
    if dest.exists() and Path(table.source).exists() and dest.samefile(table.source):
        raise UserError(f"{dest}: is the data set itself. Give another file name, so that nothing is lost.")
    content = _encode(raw, source_rows, _target_kind(raw, dest))
    if dest.suffix.lower() == ".gz":
        content = gzip.compress(content, mtime=0)
    part = dest.with_name(dest.name + ".tmp")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, dest)
    except OSError as error:
        raise DataError(f"{dest}: cannot write ({error.strerror}). Free some space or choose another place.") from None


# --- reading ---------------------------------------------------------------------------------------------------


def _read_raw(source: str | Path, split: str | None) -> RawRows:
    path, kind = Path(source), _kind(source)
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


def _kind(path: str | Path) -> str | None:
    name = str(path).lower().removesuffix(".gz")
    return _SUFFIXES.get(Path(name).suffix)


def _looks_local(source: str | Path) -> bool:
    """A path rather than a hub id: hub ids are `name` or `owner/name`."""
    name = str(source)
    return isinstance(source, Path) or name.startswith((".", "~", os.sep)) or name.count("/") > 1


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}). The file is damaged or not what its name says.") from None


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
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            raise DataError(f"{name}: line {number} is not JSON. Correct or remove that line.") from None
        lines.append(number)
        original.append(line)
    return RawRows("jsonl", rows, lines, original)


def _read_json(name: str, data: bytes) -> RawRows:
    """A JSON list of rows; files named .json that hold one object a line are read as JSONL."""
    try:
        rows = json.loads(_decode(name, data))
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
    rows = [dict(zip(header, r)) if len(r) == len(header) else r for r in records[1:]]
    return RawRows("csv", rows, lines[1:], records)


def _read_parquet(name: str, data: bytes) -> RawRows:
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{name}: not readable as Parquet ({error}). The file is damaged; fetch it again.") from None
    return RawRows("parquet", table.to_pylist(), None, table)


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


# --- shapes ----------------------------------------------------------------------------------------------------


def _file_shape(name: str, raw: RawRows) -> str:
    shapes = Counter(s for s in map(_row_shape, raw.rows) if s)
    if shapes:
        return shapes.most_common(1)[0][0]
    first = raw.rows[0]
    fields = ", ".join(map(str, first)) if isinstance(first, dict) else f"a {type(first).__name__}"
    missing = [f for f in ("chosen", "rejected") if not isinstance(first, dict) or f not in first]
    what = f"no field {missing[0]!r}" if missing else "`chosen` and `rejected` are neither text nor chat messages"
    raise DataError(
        f"{name}: {_place(raw, 0)}: {what} (found: {fields or 'nothing'}), and no other row has a known shape. "
        "Give chosen and rejected, with or without prompt, as text or as lists of chat messages."
    )


def _place(raw: RawRows, source_row: int) -> str:
    return f"row {source_row}" if raw.lines is None else f"line {raw.lines[source_row]}"


def _row_shape(row: Any) -> str | None:
    if not isinstance(row, dict):
        return None
    for shape, fields in (("persona", _PERSONA), ("alpacafarm", _ALPACA)):
        if all(f in row for f in fields):
            return shape
    chosen, rejected, prompt = (row.get(f) for f in ("chosen", "rejected", "prompt"))
    if isinstance(chosen, list) and isinstance(rejected, list):
        whole = bool(chosen) and isinstance(chosen[0], dict) and chosen[0].get("role") != "assistant"
        return "ultrafeedback" if isinstance(prompt, str) and whole else "conversational"
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return None
    if prompt is not None:
        return "prompt"
    return "hh-rlhf" if _is_transcript(chosen) and _is_transcript(rejected) else "implicit-prompt"


def _is_transcript(text: str) -> bool:
    return text.lstrip("\n").startswith("Human:") and _MARKER in text


_Parsed = tuple[Text, Text, Text]


def _from_prompt(row: dict[str, Any]) -> _Parsed:
    return _text(row, "prompt"), _text(row, "chosen"), _text(row, "rejected")


def _from_shared_start(row: dict[str, Any]) -> _Parsed:
    """The prompt is the shared start, cut back so that no word is split and a space opens the completions."""
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    most = max(0, min(len(chosen), len(rejected)) - 1)
    cut = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    while cut and any(_inside_word(t, cut) for t in (chosen, rejected)):
        cut -= 1
    cut -= chosen[cut - 1 : cut] == " "
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _inside_word(text: str, cut: int) -> bool:
    return text[cut - 1].isalnum() and text[cut : cut + 1].isalnum()


def _from_transcript(row: dict[str, Any]) -> _Parsed:
    """Completions keep the space after the marker, as the transcripts have it."""
    sides = []
    for name in ("chosen", "rejected"):
        head, marker, completion = _text(row, name).rpartition(_MARKER)
        if not marker:
            raise SkipRow("not_a_transcript", f'{name} has no "Assistant:" turn to split at', name)
        sides.append((head + marker, completion))
    (prompt, chosen), (other, rejected) = sides
    if prompt != other:
        raise SkipRow("prompts_differ", "chosen and rejected answer different prompts", "chosen")
    return prompt, chosen, rejected


def _from_alpacafarm(row: dict[str, Any]) -> _Parsed:
    texts = [_text(row, f) for f in ("instruction", "output_1", "output_2")]
    context = _text(row, "input") if row.get("input") is not None else ""
    preference = row["preference"]
    if isinstance(preference, bool) or str(preference).strip() not in ("1", "2", "1.0", "2.0"):
        raise SkipRow("no_preference", f"preference is {str(preference)[:40]!r}, not 1 or 2", "preference")
    first = str(preference).strip().startswith("1")
    chosen, rejected = texts[1:] if first else texts[:0:-1]
    return texts[0] + ("\n" + context if context else ""), chosen, rejected


def _from_persona(row: dict[str, Any]) -> _Parsed:
    """Prompt = question and a newline; answers are stripped, since after a newline the answer is "Yes", not " Yes"
    (Razin et al. 2024, appendix H.1: answers are single tokens looked up without the leading space)."""
    question, matching, other = (_text(row, f) for f in _PERSONA)
    return question + "\n", matching.strip(), other.strip()


def _from_messages(row: dict[str, Any]) -> _Parsed:
    chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
    prompt = row.get("prompt")
    given = _messages(row, "prompt") if isinstance(prompt, list) else []
    if given:
        starts = [m[: len(given)] == given and len(m) > len(given) for m in (chosen, rejected)]
        cut = len(given) if all(starts) else 0
    else:
        cut = _shared_messages(chosen, rejected)
    if chosen[cut]["role"] != "assistant" or rejected[cut]["role"] != "assistant":
        raise SkipRow("prompts_differ", "chosen and rejected answer different prompts", "chosen")
    start = given or chosen[:cut]
    if not start and prompt:
        start = [{"role": "user", "content": _text(row, "prompt")}]
    if not start:
        raise SkipRow("missing_field", "no prompt, neither in `prompt` nor as shared leading messages", "prompt")
    return start, chosen[cut:], rejected[cut:]


def _shared_messages(chosen: list[Message], rejected: list[Message]) -> int:
    """Number of shared leading messages; each side keeps at least its last."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


_PARSERS: dict[str, Callable[[dict[str, Any]], _Parsed]] = {
    "prompt": _from_prompt,
    "implicit-prompt": _from_shared_start,
    "hh-rlhf": _from_transcript,
    "alpacafarm": _from_alpacafarm,
    "persona": _from_persona,
    "conversational": _from_messages,
    "ultrafeedback": _from_messages,
}


def _text(row: dict[str, Any], name: str) -> str:
    return _checked(row.get(name), name)


def _checked(value: Any, name: str) -> str:
    if value is None:
        raise SkipRow("missing_field", f"no field {name!r}", name)
    if not isinstance(value, str):
        raise SkipRow("not_text", f"field {name!r} is {type(value).__name__}, not text", name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SkipRow("unreadable", f"field {name!r} holds half a character (a lone surrogate)", name) from None
    return value


def _messages(row: dict[str, Any], name: str) -> list[Message]:
    messages = row.get(name)
    if messages is None:
        raise SkipRow("missing_field", f"no field {name!r}", name)
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise SkipRow("not_text", f"field {name!r} is not a list of chat messages", name)
    for i, message in enumerate(messages):
        for key in ("role", "content"):
            _checked(message.get(key), f"{name}[{i}].{key}")
    return [{k: v for k, v in m.items() if v is not None} for m in messages]


# --- rows to pairs ---------------------------------------------------------------------------------------------

_USED = {"prompt", "chosen", "rejected", *_ID_FIELDS}
_USED_BY_SHAPE = {"persona": _PERSONA, "alpacafarm": (*_ALPACA, "input")}


def _parse_rows(rows: list[Any], shape: str) -> tuple[list[PreferencePair], list[RowProblem]]:
    parse, used = _PARSERS[shape], _USED.union(_USED_BY_SHAPE.get(shape, ()))
    pairs: list[PreferencePair] = []
    problems: list[RowProblem] = []
    taken: set[str] = set()
    repeats: Counter[str] = Counter()
    for i, row in enumerate(rows):
        try:
            parsed = parse(_row_fields(row))
            pair_id = _pair_id(row, parsed, taken, repeats)
        except SkipRow as skip:
            problems.append(RowProblem(i, skip.code, skip.field, skip.reason))
            continue
        taken.add(pair_id)
        columns = {k: v for k, v in row.items() if k not in used}
        pairs.append(PreferencePair(pair_id, i, *parsed, columns))
    return pairs, problems


def _row_fields(row: Any) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    what = "has more or fewer fields than the header" if isinstance(row, list) else "is not an object with fields"
    raise SkipRow("unreadable", f"the row {what}")


def _pair_id(row: dict[str, Any], parsed: _Parsed, taken: set[str], repeats: Counter[str]) -> str:
    for name in _ID_FIELDS:
        given = row.get(name)
        if isinstance(given, str | int) and given != "":
            if str(given) in taken:
                raise SkipRow("repeated_id", f"{name} {str(given)[:80]!r} was already used by an earlier row", name)
            return str(given)
    content = json.dumps(parsed, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    repeats[digest] += 1
    return digest if repeats[digest] == 1 else f"{digest}-{repeats[digest]}"


# --- writing ---------------------------------------------------------------------------------------------------


def _target_kind(raw: RawRows, dest: Path) -> str:
    kind = _kind(dest)
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
