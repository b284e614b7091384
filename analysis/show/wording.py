"""Numbers and untrusted text as a person reads them. NaN reads "not measured"."""

import math
import unicodedata
from collections.abc import Callable

ABSENT = "not measured"


def number(value: float, digits: int = 2) -> str:
    """A number with a real minus sign, from a thousand on without decimals; "not measured" for NaN."""
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    size = abs(value)
    if 0 < size < 0.01 or size >= 1e6:
        return f"{value:.2g}".replace("-", "−")
    text = f"{value:,.0f}" if size >= 1e3 else f"{value:.{digits}f}"
    return text.replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """A change, with its sign always shown."""
    text = number(value, digits)
    return "+" + text if value > 0 else text


def correlation(value: float) -> str:
    """A correlation: two digits, sign always shown; "–" where there is none."""
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


def percent(value: float) -> str:
    """A share in [0, 1] as a percentage."""
    return ABSENT if math.isnan(value) else f"{100 * value:.0f} %"


def span(interval: tuple[float, float] | None, form: Callable[[float], str] = number) -> str:
    """`low to high`, or "no interval" where there are too few rows for one."""
    if interval is None or any(math.isnan(v) for v in interval):
        return "no interval"
    return f"{form(interval[0])} to {form(interval[1])}"


def count(n: int, noun: str) -> str:
    """`1 pair`, `12 pairs`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def ordinal(n: int) -> str:
    """`1st`, `12th`, `23rd`."""
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{n}{'th' if n % 100 in (11, 12, 13) else ends.get(n % 10, 'th')}"


def visible(text: object) -> str:
    """A token as one visible line: quotes around it, control characters and odd spaces spelled out."""
    return "'" + "".join(_spell(c) for c in str(text)) + "'"


def clip(text: object, limit: int) -> str:
    """At most `limit` characters, saying how many were left out."""
    text = str(text)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def for_plot(text: object, limit: int = 40) -> str:
    """Untrusted text safe for matplotlib: no mathtext, no control characters, not too long."""
    safe = "".join(_spell(c) for c in str(text))
    safe = safe if len(safe) <= limit else safe[: limit - 1] + "…"
    return safe.replace("$", r"\$")


def _spell(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    unprintable = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return f"\\u{ord(character):04x}" if unprintable else character


_NAMED = {"\n": "⏎", "\t": "⇥", "\r": "\\r"}
