"""The known name that a mistyped one is nearest to, for every sentence that asks "did you mean". No torch."""

import difflib
from collections.abc import Iterable

from diagnostics.errors import UserError


def nearest(name: str, known: Iterable[str], *, n: int = 1, cutoff: float = 0.6) -> list[str]:
    """At most n known names, the nearest in spelling first. cutoff: how alike they must be, 0 (any will do) to 1."""
    return difflib.get_close_matches(name, list(known), n=n, cutoff=cutoff)


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that a registry does not hold: the names it begins, else the nearest; all where few."""
    known = sorted(known)
    near = [n for n in known if name and n.startswith(name.lower())]
    near = near or nearest(name.lower(), known)
    hint = f"did you mean {' or '.join(map(repr, near[:5]))}?" if near else "none is similar."
    everything = f"The {kind}s are {', '.join(known)}."
    if len(everything) > 250:
        everything = f"There are {len(known)} {kind}s; `chesboard list` names them."
    return UserError(f"unknown {kind} '{name[:80]}': {hint} {everything}")
