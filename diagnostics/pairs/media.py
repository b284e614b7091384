"""Images and clips of a row: in columns of their own, or in the parts of its messages. No torch.

Columns: `image`, `images`, `image_path`, `video`, `videos` ... (COLUMNS), of each kind the first that holds anything. A
value is a path (relative to the data's folder), a folder of frames, {"bytes", "path"} as `datasets` writes an image, an
array of pixels, or a list of these; several pictures in a column of videos are the frames of one clip.
Their places in the prompt are its image and video parts, else the tags <image> and <video> in it, else the start of the
first turn of the user (as TRL puts them).
"""

import base64
import binascii
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diagnostics.frames import (
    FRAMES,
    STILL,
    Item,
    MediaError,
    check_path,
    folder_items,
    is_still,
    of_array,
    open_media,
)
from diagnostics.media import Kind, Media
from diagnostics.pairs.context import plain_name
from diagnostics.pairs.messages import Message, SkipRow, media_parts, parsed
from diagnostics.pairs.shapes import Parsed

COLUMNS: dict[Kind, tuple[str, ...]] = {
    "image": ("images", "image", "image_paths", "image_path", "image_files", "image_file"),
    "video": ("videos", "video", "video_paths", "video_path", "video_files", "video_file", "media_path"),
}
TAG = re.compile(r"<(image|video)>")
_KEYS = ("bytes", "path", "url", "image", "video", "image_url", "video_url", "base64", "data")  # of an object
_WRITTEN = ("bytes", "base64", "data")  # of these, whose texts are base64


class MediaReader:
    """Opens the media that rows name, each file once. folder: that of the data; frames: most frames of a clip."""

    def __init__(self, folder: Path, frames: int = FRAMES) -> None:
        self.folder, self.frames = folder, frames
        self.known: dict[tuple[Any, ...], Media | MediaError] = {}

    def read(self, value: Any, kind: Kind, column: str) -> list[Media]:
        """The media that a value holds, in order. SkipRow where one cannot be shown."""
        while isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), dict | list):
            (value,) = value.values()  # a part of a message, or {"url": ...} in one
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):  # as a table of text holds a list
            inner = parsed(value)
            value = inner if isinstance(inner, list | dict) else value
        try:
            return [self._one(one, kind, column) for one in self._parted(value, kind)]
        except MediaError as error:
            raise SkipRow(error.code, f"{_place(column)}: {error}", column) from None

    def _parted(self, value: Any, kind: Kind) -> list[Any]:
        """A value as a list of what stands for one image or one clip each."""
        value = [v for v in value if not _is_empty(v)] if isinstance(value, list) else value
        if not isinstance(value, list):
            return [value]
        if _depth(value):
            deepest = 4 if kind == "video" else 3
            return value if _depth(value) > deepest else [value]
        if kind == "video" and len(value) > 1 and all(self._is_still(v) for v in value):
            return [value]
        return value

    def _is_still(self, value: Any) -> bool:
        items = self._items(value) if isinstance(value, str | dict) else []
        return len(items) == 1 and is_still(items[0])

    def _one(self, value: Any, kind: Kind, column: str) -> Media:
        if _depth(value):
            return of_array(value, kind, most=self.frames, source=f"pixels in {column}")
        items = [item for v in (value if isinstance(value, list) else [value]) for item in self._items(v)]
        if len(items) > 1 and kind == "image":
            said = "holds frames of a clip, not one image; name its column `video`"
            raise MediaError("media_unreadable", f"{_source(value, column)} {said}")
        key = (kind, *items) if items else (kind, str(value))  # an empty folder
        if key not in self.known:
            try:
                self.known[key] = open_media(items, kind, most=self.frames, source=_source(value, column))
            except MediaError as error:
                self.known[key] = error
        found = self.known[key]
        if isinstance(found, MediaError):
            raise found
        return found

    def _items(self, value: Any) -> list[Item]:
        """The files that a path or an object stands for."""
        if isinstance(value, dict):
            key = next((k for k in _KEYS if not _is_empty(value.get(k))), "path")
            inner = value.get(key)
            return [_unpacked(inner)] if key in _WRITTEN and isinstance(inner, str) else self._items(inner)
        if isinstance(value, bytes):
            return [value]
        if not isinstance(value, str):
            said = f"holds {type(value).__name__}, no path, picture or array"
            raise MediaError("media_unreadable", said)
        if value.startswith("data:"):
            return [_unpacked(value.partition(",")[2])]
        path = check_path(value, self.folder)
        return folder_items(path) if path.is_dir() else [str(path)]


def with_media(row: dict[str, Any], done: Parsed, reader: MediaReader) -> Parsed:
    """A parsed row with its media in the order of their places in the prompt, and with a part for each of them there.

    A text prompt stays text, and gets the form of a chat beside it where it is what a user asks.
    """
    for name, side in (("chosen", done.chosen), ("rejected", done.rejected)):
        if media_parts(side):
            raise SkipRow("media_in_answer", f"{name} holds an image or a video, and an answer is scored as text", name)
    columns = media_columns(row)
    given: dict[Kind, list[Media]] = {kind: reader.read(row[column], kind, column) for kind, column in columns.items()}
    used = [column for kind, column in columns.items() if given[kind]]
    if media_parts(done.prompt):
        prompt, media = _by_parts(done, given, reader)
        used += [c for c in done.used.get("prompt", ()) if c not in used and _own_media(done.prompt)]
        return replace(done, prompt=prompt, media=media, used=done.used | {"media": tuple(used)})
    media = [m for kind in COLUMNS for m in given.get(kind, [])]
    if not media and not any(map(is_media_column, row)):
        return done
    if isinstance(done.prompt, str):
        count = len(TAG.findall(done.prompt))
        media = _matched(count, TAG.findall(done.prompt), media)
        chat = in_parts(_asked(done, row), media) if media and _is_asked(done) else done.chat_prompt
        found = replace(done, chat_prompt=chat, media=tuple(media))
    else:
        tags = [t for m in done.prompt if m["role"] == "user" for t in TAG.findall(_text(m))]
        media = _matched(len(tags), tags, media)
        found = replace(done, prompt=in_parts(done.prompt, media) if media else done.prompt, media=tuple(media))
    return replace(found, used=done.used | {"media": tuple(used)}) if used else found


def is_media_column(column: str) -> bool:
    """Whether a column of this name is read as images or clips."""
    return any(plain_name(column) in names for names in COLUMNS.values())


def is_row_media(column: str) -> bool:
    """Whether a column of this name may hold what a further row of an objective shows: `<row>_image`, `<row>_video`."""
    return any(plain_name(column).endswith(f"_{name}") for names in COLUMNS.values() for name in names)


def media_of(row: dict[str, Any], reader: MediaReader) -> tuple[Media, ...]:
    """What the columns of a row show, images first. SkipRow where one cannot be shown."""
    return tuple(m for kind, column in media_columns(row).items() for m in reader.read(row[column], kind, column))


def media_columns(row: dict[str, Any]) -> dict[Kind, str]:
    """Of each kind, the column that holds a row's media."""
    found: dict[Kind, str] = {}
    for kind, names in COLUMNS.items():
        holding = [c for c in row if plain_name(c) in names and not _is_empty(row[c])]
        if holding:
            column = min(holding, key=lambda c: names.index(plain_name(c)))
            still = plain_name(column) == "media_path" and str(row[column]).lower().endswith(STILL)
            found.setdefault("image" if still else kind, column)
    return found


# --- places in the prompt ---------------------------------------------------------------------------------------


def _by_parts(
    done: Parsed, given: dict[Kind, list[Media]], reader: MediaReader
) -> tuple[list[Message], tuple[Media, ...]]:
    """The messages without the media that their parts hold, and the media: each part's own, else the next of its kind
    from the columns."""
    rest = {kind: iter(media) for kind, media in given.items()}
    media: list[Media] = []
    for part in media_parts(done.prompt):
        kind: Kind = part["type"]
        own = reader.read(part["media"], kind, "prompt") if "media" in part else []
        if len(own) > 1:
            raise SkipRow("placeholders", f"a part of type {kind!r} holds {len(own)} of them", "prompt")
        found = own[0] if own else next(rest.get(kind, iter(())), None)
        if found is None:
            count = len(given.get(kind, []))
            said = f"the prompt has a part of type {kind!r} more than there are {kind}s for it ({count} in columns)"
            raise SkipRow("placeholders", said, "prompt")
        media.append(found)
    left = sum(len(list(more)) for more in rest.values())
    if left:
        said = f"the prompt's parts have no place for {left} of the images and videos that stand in columns"
        raise SkipRow("placeholders", said, "prompt")
    assert isinstance(done.prompt, list)
    return [_bare(m) for m in done.prompt], tuple(media)


def _bare(message: Message) -> Message:
    said = message["content"]
    if isinstance(said, str):
        return message
    return message | {"content": [{k: v for k, v in part.items() if k != "media"} for part in said]}


def _own_media(prompt: Any) -> bool:
    return any("media" in part for part in media_parts(prompt))


def _matched(count: int, tags: Sequence[str], media: list[Media]) -> list[Media]:
    """Media in the order of the tags: by kind where these fit, else in the order of the columns (RRPO writes <image>
    for a video). Without tags as they are."""
    if count and count != len(media):
        said = f"the prompt has {count} tags (<image> or <video>) for {len(media)} images and videos"
        raise SkipRow("placeholders", said, "prompt")
    if count and Counter(tags) == Counter(m.kind for m in media):
        queues = {kind: iter([m for m in media if m.kind == kind]) for kind in COLUMNS}
        return [next(queues["image" if tag == "image" else "video"]) for tag in tags]
    return media


def in_parts(prompt: list[Message], media: Sequence[Media]) -> list[Message]:
    """The messages with a part for each medium: in place of the tags, else at the start of the user's first turn."""
    rest = iter(media)
    if any(TAG.search(_text(m)) for m in prompt if m["role"] == "user"):
        return [m | {"content": list(_split(_text(m), rest))} if m["role"] == "user" else m for m in prompt]
    first = next((i for i, m in enumerate(prompt) if m["role"] == "user"), None)
    if first is None:
        raise SkipRow("placeholders", "the prompt has no turn of the user that could show the media", "prompt")
    said = _text(prompt[first])
    parts = [{"type": m.kind} for m in rest] + ([{"type": "text", "text": said}] if said else [])
    return [*prompt[:first], prompt[first] | {"content": parts}, *prompt[first + 1 :]]


def _split(text: str, media: Iterator[Media]) -> Iterator[dict[str, Any]]:
    """The parts of a text with tags; a text without any stays one part."""
    for i, piece in enumerate(TAG.split(text)):
        if i % 2:
            yield {"type": next(media).kind}
        elif piece:
            yield {"type": "text", "text": piece}


def _text(message: Message) -> str:
    said = message["content"]
    return said if isinstance(said, str) else ""


def _is_asked(done: Parsed) -> bool:
    """Whether a text prompt is what a user asks, and no transcript or shared start of the answers."""
    return done.chat_prompt is not None or not set(done.used.get("prompt", ())) & set(done.used.get("chosen", ()))


def _asked(done: Parsed, row: dict[str, Any]) -> list[Message]:
    """A text prompt as a chat."""
    if done.chat_prompt is not None:
        return done.chat_prompt
    assert isinstance(done.prompt, str)
    system = "".join(row[c] for c in done.used.get("system", ()))
    said = done.prompt.removeprefix(system).removeprefix("\n") if system else done.prompt
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": said}]


# --- values -----------------------------------------------------------------------------------------------------


def _is_empty(value: Any, levels: int = 4) -> bool:
    """Whether a value stands for no media: null, "", [], or an object or a list of nothing else, some levels deep."""
    if isinstance(value, dict | list) and value and not levels:
        return False
    if isinstance(value, dict):
        return all(_is_empty(v, levels - 1) for v in value.values())
    if isinstance(value, list):
        return all(_is_empty(v, levels - 1) for v in value)
    return value is None or (isinstance(value, str | bytes) and not value.strip())


def _depth(value: Any) -> int:
    """Axes of nested lists of numbers; 0 for anything else."""
    depth = 0
    while isinstance(value, list) and value:
        value, depth = value[0], depth + 1
    return depth if isinstance(value, int | float) and not isinstance(value, bool) else 0


def _unpacked(text: str) -> bytes:
    """The content that base64 text stands for."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MediaError("media_unreadable", "it is no base64 text") from None


def _source(value: Any, column: str) -> str:
    if isinstance(value, list) and value:
        return _source(value[0], column) + (" ..." if len(value) > 1 else "")
    if isinstance(value, dict):
        value = value.get("path") or value.get("url")
    return value[:200] if isinstance(value, str) and not value.startswith("data:") else f"an entry of {column}"


def _place(column: str) -> str:
    return "a part of the prompt" if column == "prompt" else f"the column {column!r}"
