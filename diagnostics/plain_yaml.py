"""Settings files: YAML that holds only text, numbers, truth values, lists and mappings. Anything else is refused.

Only true and false are truth values (no and off are words), 1e-6 is a number, and 007, 0x10 and 2020-01-01 are text.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from diagnostics.errors import UserError

DEEPEST = 20  # lists and mappings inside each other
LONGEST = 1_000_000  # characters of a file
DIGITS = 30  # of a whole number


def read_plain(path: Path) -> Any:
    """The content of a YAML (or JSON) file. Raises UserError naming file and line."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path}: cannot read this file ({reason}).") from None
    if len(text) > LONGEST:
        raise UserError(f"{path}: longer than {LONGEST:,} characters, which no settings file is.")
    try:
        return parse_plain(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not readable as YAML{_where(error)}.") from None


def parse_plain(text: str) -> Any:
    """The content of a YAML text. Raises yaml.YAMLError for what is no YAML, or more than plain YAML."""
    _check_events(text)
    return yaml.load(text, Loader=_Plain)


def _check_events(text: str) -> None:
    """Depth, tags and aliases are judged while reading, before anything is built from them."""
    depth = 0
    for event in yaml.parse(text, Loader=_Plain):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused(event.start_mark, "anchors and aliases (& and *) are not read; put such text in quotes")
        if getattr(event, "tag", None):
            raise _refused(event.start_mark, "tags (such as !!int) are not read; write the value alone")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise _refused(event.start_mark, f"more than {DEEPEST} lists or mappings inside each other")


class _Plain(yaml.SafeLoader):
    """Knows null, true and false, whole and decimal numbers; all else is text. No key may stand twice."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 (as in PyYAML)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _refused(key.start_mark, f"the key '{key.value[:60]}' stands twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _whole(loader: _Plain, node: Any) -> int:
    if len(node.value) > DIGITS:
        raise _refused(node.start_mark, f"a number of {len(node.value):,} digits, more than can be meant")
    return int(node.value)


_Plain.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Plain.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:[Tt]rue|TRUE|[Ff]alse|FALSE)$"), list("tTfF"))
_Plain.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Plain.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
        r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
_Plain.add_constructor("tag:yaml.org,2002:int", _whole)


def _refused(mark: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _where(error: yaml.YAMLError) -> str:
    """Line and reason of what is no plain YAML."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    line = f" at line {mark.line + 1}" if mark else ""
    return f"{line} ({' '.join(str(problem or error).split())[:200]})"
