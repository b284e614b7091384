"""Values of settings: whether a key can take one, and in which words to say what it takes."""

import json
import math
import types
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from diagnostics.errors import UserError
from diagnostics.names import nearest


def checked(key: str, value: Any, kind: Any, limits: tuple[float, float]) -> Any:
    """The value, if the key can take it: a wrong one is refused here, by name, and not deep inside a library.

    kind: the key's annotated type. limits: the smallest and the largest number.
    """
    if isinstance(value, int) and not isinstance(value, bool) and not _fits(value, kind) and _fits("", kind):
        value = str(value)  # a run called 7
    if not _fits(value, kind):
        raise UserError(f"{key} is {shown(value)}; it must be {wanted(value, kind)}.")
    if isinstance(value, str) and dict in _plain_kinds(kind):
        _check_mapping(key, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = limits
        if not low <= value <= high:
            more = f"{low} or more" if value < low else f"{high:,} at most".replace(",", "")
            raise UserError(f"{key} is {shown(value)}; it must be {wanted(value, kind)}, {more}.")
        value = int(value) if int in _plain_kinds(kind) and float not in _plain_kinds(kind) else value
    return value


def _check_mapping(key: str, value: str) -> None:
    """Text where a mapping is wanted: a JSON object, or a file that holds one."""
    try:
        found = json.loads(value if value.startswith("{") else Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{key} is {shown(value)}; it must be a mapping (key: value) or a JSON file that holds one.")


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The alternatives of an annotated type. Where one is a list of words, free text is none."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    words = any(isinstance(part, type) and issubclass(part, Enum) for part in parts)
    return tuple(part for part in parts if not (words and part is str))


def _plain_kinds(kind: Any) -> list[Any]:
    return [get_origin(part) or part for part in _kinds(kind)]


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value read from YAML is of an annotated type. A whole number is a decimal one too, and 3.0 is whole."""
    return any(_fits_one(value, part) for part in _kinds(kind))


def _fits_one(value: Any, kind: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf  # false for NaN
    if kind is float:
        return number
    if kind is int:
        return number and value == int(value)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if words := _words(kind):
        return isinstance(value, str) and value in words
    kind = get_origin(kind) or kind
    return kind is Any or (isinstance(kind, type) and isinstance(value, kind))


def _words(kind: Any) -> list[str]:
    """The words that a kind allows, where it allows only some."""
    if get_origin(kind) is Literal:
        return [word for word in get_args(kind) if isinstance(word, str)]
    return [word.value for word in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def wanted(value: Any, kind: Any) -> str:
    """What a key takes, in words."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text (in quotes)", list: "a list"}
    said = []
    for part, plain in zip(_kinds(kind), _plain_kinds(kind), strict=True):
        words = _words(part)
        if len(words) > 12:
            near = nearest(str(value), words, n=3, cutoff=0)
            said.append(f"one of {len(words)} words, the nearest are {', '.join(near)}")
        elif words:
            said.append(f"one of {', '.join(words)}")
        elif plain in (dict, *names):
            said.append(names.get(plain, "a mapping (key: value)"))
    return " or ".join(said) or "left out"


def shown(value: Any) -> str:
    """A value as it was given, not too long."""
    text = json.dumps(value, default=str) if isinstance(value, bool | dict | list) else str(value)
    return "empty" if value is None else f"'{text[:60]}{' ...' if len(text) > 60 else ''}'"
