"""A source's rows as pairs: the shape that most of them have, each row read by it, and what is said of it. No torch.

A row never loses content silently: what carries a prompt by its name and is not used, refuses the row.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diagnostics.errors import DataError, printable
from diagnostics.frames import FRAMES
from diagnostics.pairs import shapes
from diagnostics.pairs.answers import RRPO, numbering
from diagnostics.pairs.context import (
    ASKED,
    INSTRUCTION,
    WORDS,
    is_context,
    is_media,
    looks_like_content,
    plain_name,
    squeezed,
    texts,
)
from diagnostics.pairs.media import MediaReader, is_media_column, is_row_media, media_columns, with_media
from diagnostics.pairs.messages import SkipRow, text_of, without_nulls
from diagnostics.pairs.pair import PairTable, PreferencePair, Reading, RowProblem
from diagnostics.pairs.rows import RawRows, folder_of, read_rows
from diagnostics.progress import counted

_ID_FIELDS = ("pair_id", "sample_id", "id")
_PREFIXES = ("prefix", "initial_reason_steps")
_SCORES = ("score", "rating", "reward", "quality")
_LOOKED_AT = 1000  # rows by which a column of no known name is judged


def read_pairs(
    source: str | Path,
    *,
    split: str | None = None,
    frames: int = FRAMES,
    media_folder: str | Path | None = None,
) -> PairTable:
    """Read preference pairs from a .jsonl, .json, .csv or .parquet file (also .gz), a folder, or a hub id.

    frames: most frames that are taken of a clip, evenly spread. media_folder: what paths of images and clips are
    relative to; the data's own folder where None.

    A row that cannot be used becomes a problem with its reason. Raises DataError where the source as a whole cannot
    be used: missing, empty, damaged, of no known shape, with a column that holds a prompt and is not used, or without
    one usable row.
    """
    raw = read_rows(source, split)
    return pairs_of(str(source), raw, frames=frames, folder=media_folder_of(source, media_folder))


def pairs_of(name: str, raw: RawRows, *, frames: int = FRAMES, folder: Path = Path()) -> PairTable:
    """The same from rows that are read already; name: what errors call them; folder: what paths of media start from."""
    if not raw.rows:
        raise DataError(f"{name}: holds no rows. Give a data set with at least one preference pair.")
    views = [_view(row, raw.padded) for row in raw.rows]
    shape = _file_shape(name, raw, views)
    _refuse_numbering(name, views, shape)
    parsed, problems = _parse_rows(views, shape, MediaReader(folder, frames))
    _refuse_unread(name, raw, problems)
    if parsed:
        _refuse_unknown(name, raw, views, parsed, shape)
    pairs, repeated = _pairs(raw.rows, parsed)
    reading = _reading(raw, views, parsed, shape, repeated)
    table = PairTable(name, _say_frames(reading, pairs, frames), pairs, problems, raw)
    if not pairs:
        first = problems[0]
        raise DataError(
            f"{table.where(first.source_row)}: {first.reason}. None of the {len(raw.rows)} rows gives a pair "
            "(this is the first of them); correct the data."
        )
    return table


def media_folder_of(source: str | Path, asked: str | Path | None) -> Path:
    """Where relative paths of images and clips point: the folder asked for, or that of the data."""
    if asked is None:
        return folder_of(source)
    if not Path(asked).is_dir():
        raise DataError(f"{asked}: no such folder of images and clips. Check media_folder.")
    return Path(asked)


# --- the shape -------------------------------------------------------------------------------------------------

_View = dict[str, Any] | SkipRow


def _view(row: Any, padded: bool) -> _View:
    try:
        seen = shapes.view(row)
        media = media_columns(seen).values()  # what is null there is no frame
        nested = [k for k, v in seen.items() if padded and isinstance(v, dict | list) and k not in media]
        empty = {k: [] for k, v in row.items() if v is None and is_media_column(k)}  # places for it are too many
        return seen | {k: without_nulls(seen[k]) for k in nested} | empty
    except SkipRow as skip:
        return skip


def _file_shape(name: str, raw: RawRows, views: list[_View]) -> tuple[str, str]:
    found: Counter[tuple[str, str]] = Counter()
    skips = []
    for i, view in enumerate(views):
        try:
            shape = shapes.shape_of(view) if isinstance(view, dict) else None
        except SkipRow as skip:
            skips.append((i, skip))
            continue
        found.update([shape] if shape else [])
    if found:
        return found.most_common(1)[0][0]
    if skips:
        row, skip = skips[0]
        raise DataError(f"{name}: {raw.place(row)}: {skip}. No row gives a pair; correct the data.")
    first = raw.rows[0]
    fields = ", ".join(map(str, first)) if isinstance(first, dict) else f"a {type(first).__name__}"
    raise DataError(f"{name}: {raw.place(0)}: {printable(_unknown(first, fields))}")


def _unknown(row: Any, fields: str) -> str:
    """Why a row of no known shape is none, and what to do."""
    have = row if isinstance(row, dict) else {}
    if "label" in have and any(c in have for c in ("completion", "response", "answer")):
        return (
            f"holds one answer with a label, not a pair (columns found: {fields}). Put the answers to one prompt that "
            "are labelled true and false into one row, as chosen and rejected."
        )
    missing = [f for f in ("chosen", "rejected") if f not in have]
    what = f"no field {missing[0]!r}" if missing else "`chosen` and `rejected` are neither text nor chat messages"
    return (
        f"{what} (found: {fields or 'nothing'}), and no other row has a known shape. "
        "Give chosen and rejected, with or without prompt, as text or as lists of chat messages."
    )


# --- rows to pairs ---------------------------------------------------------------------------------------------


def _parse_rows(
    views: list[_View], shape: tuple[str, str], reader: MediaReader
) -> tuple[dict[int, shapes.Parsed], list[RowProblem]]:
    """Parsed rows by source row, and the rows that gave none."""
    parsed: dict[int, shapes.Parsed] = {}
    problems: list[RowProblem] = []
    some = any(isinstance(view, dict) and media_columns(view) for view in views)
    for i, view in enumerate(counted(views, "media", len(views), unit="row", show=some)):
        try:
            if isinstance(view, SkipRow):
                raise view
            done = with_media(view, shapes.parse(view, shape), reader)
            _require_read(view, done, shapes.name_of(shape))
            parsed[i] = replace(done, digest=_digest(done))
        except SkipRow as skip:
            problems.append(RowProblem(i, skip.code, skip.field, str(skip)))
        except RecursionError:
            problems.append(RowProblem(i, "unreadable", "", "the row is nested too deeply to be read"))
    return parsed, problems


def _require_read(view: dict[str, Any], done: shapes.Parsed, shape: str) -> None:
    """SkipRow where a column that holds a prompt by its name is not used and says what the pair does not."""
    used = {c for columns in done.used.values() for c in columns}
    whole = None
    for column in [c for c in view if c not in used and is_context(c)]:
        whole = _whole(done) if whole is None else whole
        if any(squeezed(text) not in whole for text in texts(view[column])):
            reason = (
                f"the column {column!r} holds text that is not in the pair (read as {shape}); rename it to what it is "
                "(prompt, system, messages ...), or drop it if it is no part of the prompt"
            )
            raise SkipRow("context_unread", reason, column)


def _whole(done: shapes.Parsed) -> str:
    """Every text of a pair, with single spaces."""
    said = (done.prompt, done.chosen, done.rejected)
    return squeezed(" ".join(t if isinstance(t, str) else " ".join(map(text_of, t)) for t in said))


def _refuse_numbering(name: str, views: list[_View], shape: tuple[str, str]) -> None:
    """DataError where the better answer's numbers may be counted from another start than the answers' own."""
    if shape[0] not in ("two-responses", "alpacafarm"):
        return
    said = [found for view in views if isinstance(view, dict) and (found := numbering(view))]
    for column, ends in dict.fromkeys((column, ends) for column, ends, _ in said):
        numbers = Counter(number for *place, number in said if place == [column, ends])
        if len(numbers) == 2 and any(n not in ends and times > 1 for n, times in numbers.items()):
            raise DataError(
                f"{name}: the column {column!r} holds {min(numbers)} and {max(numbers)}, but the answers are numbered "
                f"{ends[0]} and {ends[1]}, so which is better cannot be told. Write the better answer's own number "
                "there, or the name of its column."
            )


def _refuse_unread(name: str, raw: RawRows, problems: list[RowProblem]) -> None:
    """DataError where half of the rows or more would lose a column's text."""
    unread = [p for p in problems if p.code == "context_unread"]
    if unread and 2 * len(unread) >= len(raw.rows):
        first = unread[0]
        raise DataError(f"{name}: {raw.place(first.source_row)}: {printable(first.reason)}.")


def _refuse_unknown(
    name: str, raw: RawRows, views: list[_View], parsed: dict[int, shapes.Parsed], shape: tuple[str, str]
) -> None:
    """DataError where the prompt was pieced together and a column of another name holds sentences too."""
    if shape[1] not in ("implicit-prompt", "prompt-columns"):
        return
    seen = {i: view for i, view in enumerate(views) if isinstance(view, dict) and i in parsed}
    used = {c for done in parsed.values() for columns in done.used.values() for c in columns}
    starts = sorted(len(done.prompt.split()) for done in parsed.values() if isinstance(done.prompt, str))
    words = WORDS if starts and starts[len(starts) // 2] >= WORDS else 1  # a shared start of two words is no prompt
    for column in dict.fromkeys(c for view in seen.values() for c in view):
        values = [view.get(column) for view in list(seen.values())[:_LOOKED_AT]]
        if column in used:
            continue
        if plain_name(column) in ASKED | INSTRUCTION and any(type(v) in (int, float) for v in values):
            raise DataError(f"{name}: {printable(f'the column {column!r}')} holds numbers. Write them as text.")
        if is_context(column):
            continue
        if not looks_like_content(column, values, words=words, known_only=shape[1] == "prompt-columns"):
            continue
        lost = [
            i for i, view in seen.items() if any(squeezed(t) not in _whole(parsed[i]) for t in texts(view.get(column)))
        ]
        if lost:
            raise DataError(
                f"{name}: {raw.place(lost[0])}: {printable(f'the column {column!r}')} holds sentences that are not in "
                f"the pair (read as {shapes.name_of(shape)}). Rename it to what it is (prompt, question, context ...), "
                "or drop it if it is no part of the prompt."
            )


def _pairs(rows: list[Any], parsed: dict[int, shapes.Parsed]) -> tuple[list[PreferencePair], int]:
    """The pairs in source order, and how many share their given id with another row."""
    given = {i: _given_id(rows[i]) for i in parsed}
    times = Counter(g for g in given.values() if g)
    pairs, taken, repeats = [], set(), Counter()
    for i, done in parsed.items():
        own = given[i]
        base = own if own and times[own] == 1 else "-".join(p for p in (own, done.digest) if p)
        repeats[base] += 1
        pair_id = base if repeats[base] == 1 else f"{base}-{repeats[base]}"
        while pair_id in taken:
            repeats[base] += 1
            pair_id = f"{base}-{repeats[base]}"
        taken.add(pair_id)
        away = {"prompt", "chosen", "rejected", *_ID_FIELDS, *(c for cs in done.used.values() for c in cs)}
        columns = {k: v for k, v in rows[i].items() if k not in away}
        texts_ = (done.prompt, done.chosen, done.rejected)
        given_ = (done.tools, done.template_kwargs, done.chat_prompt, done.media)
        pairs.append(PreferencePair(pair_id, i, *texts_, columns, *given_))
    return pairs, sum(n for n in times.values() if n > 1)


def _given_id(row: dict[str, Any]) -> str:
    """The row's own id as text, or "" where it has none."""
    found = (row.get(name) for name in _ID_FIELDS)
    own = next((str(v) for v in found if isinstance(v, str | int) and v != ""), "")
    return own.encode("utf-8", "backslashreplace").decode()


def _digest(done: shapes.Parsed) -> str:
    """16 hex digits of a hash of the content."""
    content: list[Any] = [done.prompt, done.chosen, done.rejected]
    content += [done.tools, done.template_kwargs] if done.tools or done.template_kwargs else []
    content += [repr(done.media)] if done.media else []
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- what is said of it ----------------------------------------------------------------------------------------


def _reading(
    raw: RawRows, views: list[_View], parsed: dict[int, shapes.Parsed], shape: tuple[str, str], repeated: int
) -> Reading:
    columns = dict.fromkeys(c for row in raw.rows if isinstance(row, dict) for c in row)
    used: dict[str, dict[str, None]] = {}
    for done in parsed.values():
        for role, names in done.used.items():
            used.setdefault(role, {}).update(dict.fromkeys(names))
    used["id"] = dict.fromkeys([c for c in _ID_FIELDS if c in columns][:1])
    used["scores"] = dict.fromkeys(score_columns(list(columns)))
    used["phrases"] = dict.fromkeys(c for c in RRPO if c in columns and c.endswith("_masked") and shape[0] == "rrpo")
    roles = {role: tuple(n for n in names if n in columns) for role, names in used.items()}
    roles = {role: names for role, names in roles.items() if names}
    taken = {c for names in roles.values() for c in names}
    ignored = tuple(c for c in columns if c not in taken)
    notes = dict.fromkeys(done.note for done in parsed.values() if done.note)
    further = [c for c in ignored if is_row_media(c)]
    media = [c for c in ignored if is_media(c) and c not in further]
    again = [c for c in ignored if is_context(c)]
    found = [f"what {', '.join(again)} holds is empty, or stands in the pair already"] if again else []
    steps = [c for c in ignored if c in _PREFIXES]
    found += (
        [f"{', '.join(steps)}, where an answer's first steps stand, is for the objective step_dpo"] if steps else []
    )
    found += [f"no model is shown what {', '.join(media)} holds"] if media else []
    found += (
        [f"what {', '.join(further)} holds is shown where the objective has a further row of that name, else nowhere"]
        if further
        else []
    )
    read = taken - ({*roles.get("media", ())} - {*roles.get("prompt", ())})
    nulls = sum(_had_nulls(row, read) for row in raw.rows) if raw.padded else 0
    found += [f"nested nulls, which the file's format adds, were removed in {nulls} rows"] if nulls else []
    found += [f"{repeated} rows share their id with another, so a hash of the content follows it"] if repeated else []
    chats = {bool(done.media) for done in parsed.values() if done.chat_prompt}
    found += [_CHAT] * (False in chats) + [_CHAT_SHOWN] * (True in chats)
    return Reading(shapes.name_of(shape), roles, ignored, (*notes, *found))


def _say_frames(reading: Reading, pairs: list[PreferencePair], frames: int) -> Reading:
    """The reading, with how many frames were left out, where any were."""
    cut = len({m.digest for pair in pairs for m in pair.media if m.kind == "video" and m.view})
    if not cut:
        return reading
    said = f"clips of more than {frames} frames: {cut}; of their N frames, {frames} are taken, floor(k N / {frames})"
    return replace(reading, notes=(*reading.notes, said))


_CHAT = (
    "the prompt is a chat where the chat template ends a turn in a token at which the model stops, else lines of text"
)


_CHAT_SHOWN = "with images or clips, the prompt is a chat where the model has a chat template, else text"


def score_columns(columns: Sequence[str]) -> list[str]:
    """The columns that score the two answers: their names differ only in chosen and rejected."""
    both = [c for c in columns if any(word in c.lower() for word in _SCORES)]
    swap = {"chosen": "rejected", "rejected": "chosen"}
    return [c for c in both if any(side in c and c.replace(side, other) in both for side, other in swap.items())]


def _had_nulls(row: dict[str, Any], columns: set[str]) -> bool:
    nested = [row.get(c) for c in columns if isinstance(row.get(c), dict | list)]
    return any(without_nulls(value) != value for value in nested)
