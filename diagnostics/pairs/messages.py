"""Chat messages as data sets write them, in one form: {"role", "content"} and what templates use. No torch.

A message may be written as role and content or as from and value (ShareGPT); a list of them may be text (JSON, or
Python's str() as a data frame's to_csv leaves it); a content may be a list of parts. Roles get their usual names.
A content of text parts becomes their text; one with images or videos stays a list of {"type": "text", "text"} and
{"type": "image" or "video"}, the latter with its own "media" where the data gives them there (see pairs.media).
Whatever else a message carries (ids, times, ratings) is no part of the conversation and is left out.
"""

import ast
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
Text = str | list[Message]

ROLES = {
    "assistant": (
        "assistant",
        "function_call",
        "gpt",
        "model",
        "bot",
        "chatbot",
        "ai",
        "chatgpt",
        "bing",
        "bard",
        "agent",
    ),
    "user": ("user", "human", "prompter", "person", "customer"),
    "system": ("system",),
    "tool": ("tool", "observation", "tool_response", "function_response"),
}
_ROLE = {name: role for role, names in ROLES.items() for name in names}
USED = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking", "tool_plan")  # by templates
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_PARTS = {"image": "image", "image_url": "image", "input_image": "image", "video": "video", "video_url": "video"}
_PART_KEYS = ("image", "video", "image_url", "video_url", "url", "bytes", "path", "base64", "data")
_KNOWN = "|".join(_ROLE)
_LOOKS = re.compile(
    rf"""^\s*(array\()?\[?\s*\{{.*['"](role|from)['"]\s*:\s*['"]({_KNOWN})['"]""", re.DOTALL | re.IGNORECASE
)
_TURN = re.compile(r"""^\s*\[\s*\{\s*['"](role|content)['"]\s*:""")
_LOOKS_TOO = re.compile(r"""['"](content|value|tool_calls)['"]\s*:""")


class SkipRow(Exception):
    """Raised inside the room when one row cannot be used; never reaches the user."""

    def __init__(self, code: str, reason: str, field: str = "") -> None:
        super().__init__(reason)
        self.code, self.reason, self.field = code, reason, field


def checked(value: Any, name: str) -> str:
    """The value, where it is text that can be encoded."""
    if value is None:
        raise SkipRow("missing_field", f"no field {name!r}", name)
    if not isinstance(value, str):
        raise SkipRow("not_text", f"field {name!r} is {type(value).__name__}, not text", name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SkipRow("unreadable", f"field {name!r} holds half a character (a lone surrogate)", name) from None
    return value


def is_message(value: Any) -> bool:
    """A dict with a role (or from), however the rest of it is written."""
    return isinstance(value, dict) and any(isinstance(value.get(k), str) for k in _ROLE_KEYS)


def is_messages(value: Any) -> bool:
    """A list of messages that is not empty."""
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def opened(value: Any) -> Any:
    """Text that is a list of messages (or one) as that list; anything else as it is."""
    if not looks_like_messages(value):
        return value
    found = parsed(parsed(value) if _is_quoted(value) else value)
    return found if is_messages(found) or is_message(found) else value


def looks_like_messages(value: Any) -> bool:
    """Text that is a list of messages or was one (cut off, or printed as an array, or written as JSON text twice)."""
    if not isinstance(value, str):
        return False
    if _is_quoted(value):
        return looks_like_messages(parsed(value))
    if _LOOKS.match(value) and _LOOKS_TOO.search(value):
        return True
    turns: Any = parsed(value) if _TURN.match(value) else None  # with roles of another language, nothing else in them
    return is_messages(turns) and all(set(turn) == {"role", "content"} for turn in turns)


def _is_quoted(value: str) -> bool:
    return value[:3] in ('"[{', '"{\\')


def parsed(text: str) -> Any:
    """The value that JSON text or a Python literal stands for; None where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash in the text is no concern of the user's
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def without_nulls(value: Any) -> Any:
    """The value without the keys that hold null, at any depth."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def messages(value: Any, name: str) -> list[Message]:
    """A field's messages in the one form; a single message counts as a list of one."""
    value = [value] if is_message(value) else value
    if value is None:
        raise SkipRow("missing_field", f"no field {name!r}", name)
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        raise SkipRow("not_text", f"field {name!r} is not a list of chat messages", name)
    return [_message(m, f"{name}[{i}]") for i, m in enumerate(value)]


def alike(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Whether two lists say the same: by role, content and tool calls alone."""
    return len(one) == len(other) and all(_said(a) == _said(b) for a, b in zip(one, other))


def shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """Number of shared leading messages; each side keeps at least its last."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if _said(chosen[i]) != _said(rejected[i])), most)


def text_of(message: Message) -> str:
    """A message's content as text; of parts, the text parts."""
    said = message["content"]
    return said if isinstance(said, str) else "".join(part.get("text", "") for part in said)


def media_parts(turns: Text) -> list[dict[str, Any]]:
    """The parts of messages that are images or videos, in order."""
    contents = [] if isinstance(turns, str) else [m["content"] for m in turns if isinstance(m["content"], list)]
    return [part for content in contents for part in content if part["type"] != "text"]


def _said(message: Message) -> tuple[Any, ...]:
    return message["role"], message["content"], message.get("tool_calls")


def _message(message: dict[str, Any], name: str) -> Message:
    role_key = next((k for k in _ROLE_KEYS if message.get(k) is not None), "role")
    content_key = next((k for k in _CONTENT_KEYS if message.get(k) is not None), "content")
    role = checked(message.get(role_key), f"{name}.{role_key}")
    if role.strip().lower() == "function_call":
        message, content_key = _call(message.get(content_key), f"{name}.{content_key}"), "content"
    found = {"role": _ROLE.get(role.strip().lower(), role)}
    used = {k: message[k] for k in USED if message.get(k) not in (None, [], "")}
    if isinstance(used.get("tool_calls"), str):
        used["tool_calls"] = parsed(used["tool_calls"])
    if "tool_calls" in used and not _are_objects(used["tool_calls"]):
        raise SkipRow("not_text", f"field '{name}.tool_calls' is not a list of calls", f"{name}.tool_calls")
    every_text(used, name)
    found["content"] = (
        ""
        if "tool_calls" in used and message.get(content_key) is None
        else _content(message.get(content_key), f"{name}.{content_key}")
    )
    return found | used


def _call(value: Any, name: str) -> dict[str, Any]:
    """A ShareGPT turn "function_call": JSON text of a call (or of several), as a message with tool calls."""
    found = parsed(value) if isinstance(value, str) else value
    found = [found] if isinstance(found, dict) else found
    if not found or not _are_objects(found) or not all("name" in call for call in found):
        raise SkipRow("not_text", f"field {name!r} is not JSON text of a function call", name)
    return {"tool_calls": [{"type": "function", "function": call} for call in found]}


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, dict) for v in value)


def _content(value: Any, name: str) -> str | list[dict[str, Any]]:
    """A content as text: of a list of text parts, the texts joined; with images or videos among them, as parts. A part
    of another kind is refused by its type."""
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        return checked(value, name)
    parts = [_part(part, name) for part in value]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return [part for part in parts if part != {"type": "text", "text": ""}]


def _part(part: Any, name: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        return {"type": "text", "text": checked(part, name)}
    kind = part.get("type") or next((k for k in ("image", "video") if part.get(k)), "text")
    if kind in ("text", "input_text", "output_text"):
        return {"type": "text", "text": checked(part.get("text"), name)}
    if not isinstance(kind, str) or kind not in _PARTS:
        said = f"field {name!r} has a part of type {str(kind)[:40]!r}; only text, images and videos are read"
        raise SkipRow("not_text", said, name)
    key = next((k for k in _PART_KEYS if part.get(k)), "")
    return {"type": _PARTS[kind]} | ({"media": {key: part[key]}} if key else {})


def every_text(value: Any, name: str) -> None:
    """SkipRow where any text inside holds a lone surrogate."""
    if isinstance(value, str):
        checked(value, name)
    elif isinstance(value, dict):
        for key, inner in value.items():
            every_text(key, name)
            every_text(inner, name)
    elif isinstance(value, list):
        for inner in value:
            every_text(inner, name)
